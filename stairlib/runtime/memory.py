"""How the C library's allocator deals with buffers of a MiB, of which daemons use many.

By its defaults such a buffer is given back to the kernel when it is freed, and every page of the
next one is a fault: a quarter of what sending a MiB costs.
"""

from __future__ import annotations

import ctypes
import sys

# mallopt's names for them, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# Buffers above this size, such as a region's arena, are still the kernel's when they are freed.
LARGE_BYTES = 8 << 20
# What may stay unused at the end of the heap: a few chunks on their way in both directions.
KEPT_BYTES = 16 << 20


def keep_freed_buffers() -> None:
    """From now on, for the whole process. Without effect where the C library is another."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
