"""What the gateway decides: bytes of clients in, steps out. No sockets."""
