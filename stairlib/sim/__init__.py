"""The engine room of the simulator: time, chance, network, faults of disks, and a trace."""
