"""gRPC servicers: check, call the core, map the answer."""
