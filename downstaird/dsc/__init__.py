"""Starts, stops and torments local downstairs."""
