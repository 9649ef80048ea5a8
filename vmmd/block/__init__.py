"""Block backends and exports."""
