"""The machine daemon: machines, their devices, and the upstairs of their volumes."""
