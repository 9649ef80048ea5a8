"""The process of one machine: devices, block layer and upstairs on one loop."""
