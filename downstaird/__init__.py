"""The storage daemon: one region on disk."""
