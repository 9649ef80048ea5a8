"""Durable state in SQL."""
