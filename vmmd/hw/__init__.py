"""Emulated hardware: pure, no I/O."""
