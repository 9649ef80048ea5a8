"""Between bytes or protobuf messages and the model, both ways, and nothing else."""
