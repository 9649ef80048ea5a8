"""Configuration, limits and orderly shutdown."""
