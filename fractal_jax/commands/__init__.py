"""The command line's jobs: a module a subcommand, `define_flags` and `run`."""
