"""The upstairs as a pure state machine."""
