"""How the daemons speak gRPC: servers, channels, interceptors, the one error table."""
