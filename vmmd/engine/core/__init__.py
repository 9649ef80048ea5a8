"""Decisions of the engines: capabilities, transports, QEMU's command line. Pure."""
