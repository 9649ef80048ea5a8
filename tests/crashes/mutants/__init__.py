"""Deliberate bugs of the storage, one a module: `plant(patch)` puts it into the code, and the crash
tester has to find it."""
