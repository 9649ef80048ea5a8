"""What decides: pure, no I/O."""
