"""A serial port."""
