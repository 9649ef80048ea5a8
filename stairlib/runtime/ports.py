"""Ports of this host that a program is about to be given."""

from __future__ import annotations

import socket


def can_listen(host: str, port: int) -> bool:
    """Whether the port can be taken at the address (no name, no brackets) now; somebody else may be
    quicker."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
