"""Deliberate bugs, one a module: `plant(patch)` puts it into the code, and the simulator has to
find it."""
