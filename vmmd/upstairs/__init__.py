"""The client that drives the three copies of a region set."""
