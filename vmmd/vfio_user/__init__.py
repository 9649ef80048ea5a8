"""Devices for hypervisors that speak vfio-user: one PCI function on a unix socket."""
