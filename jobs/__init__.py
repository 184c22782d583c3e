"""What a user runs: one module a command, and the command line that gathers them."""
