"""A link between two hosts that can be made bad: for tests, and for trying it out."""
