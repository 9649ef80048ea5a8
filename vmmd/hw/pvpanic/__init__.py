"""The port by which a guest says that its kernel has panicked."""
