"""Decisions of a vfio-user server: messages, and what they do to a PCI function. Pure."""
