"""The stairwell command."""
