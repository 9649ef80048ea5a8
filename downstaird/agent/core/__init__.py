"""What the agent decides: which regions there are to be, and what their processes are to do."""
