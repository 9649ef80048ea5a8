"""A host's worth of regions, asked for over gRPC: `downstaird agent`."""
