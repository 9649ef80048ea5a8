"""Shared by the programs: model, wire, rpc, telemetry and runtime."""
