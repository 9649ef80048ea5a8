"""Frozen typed values of the domain; no protobuf, no I/O."""
