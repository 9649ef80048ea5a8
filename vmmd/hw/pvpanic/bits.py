"""The pvpanic port, as QEMU has it (docs/specs/pvpanic). Constants only."""

from __future__ import annotations

# In I/O space; one byte.
PORT = 0x505

# Read: what the host takes. Written: what has happened.
PANICKED = 1 << 0
# The guest deals with it itself, by a kernel that is kept for that.
CRASH_LOADED = 1 << 1
EVENTS = PANICKED | CRASH_LOADED
