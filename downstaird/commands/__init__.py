"""The subcommands of `downstaird`, one module each; none of them knows the command line."""
