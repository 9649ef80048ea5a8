"""The vmmd daemon: starts, watches and speaks for machine processes."""
