"""What the control plane does for its users: store, peers and pure decisions brought together."""
