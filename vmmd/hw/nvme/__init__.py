"""An NVMe controller."""
