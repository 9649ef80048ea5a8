"""A cluster of local processes: what its file says, its processes, its networks."""
