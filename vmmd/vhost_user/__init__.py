"""Disks for hypervisors that speak vhost-user: a virtio block device whose rings are here."""
