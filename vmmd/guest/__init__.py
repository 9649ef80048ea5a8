"""The built-in guest: a driver that issues NVMe commands through the emulated queues."""
