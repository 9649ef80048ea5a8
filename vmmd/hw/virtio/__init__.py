"""Virtqueues, as devices see them."""
