"""Stairwell beside what people would use instead: QEMU's `quorum` over three `qemu-nbd`."""
