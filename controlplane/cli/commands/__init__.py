"""The subcommands of `stairwell`, one module for each thing they are about."""
