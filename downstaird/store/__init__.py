"""The region on files."""
