"""The virtio block device."""
