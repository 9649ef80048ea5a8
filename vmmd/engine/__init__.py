"""What runs a machine's processors: nothing but the built-in guest, or QEMU."""
