"""What a host has and lacks for the programs: facts, what they mean, and how that is shown."""
