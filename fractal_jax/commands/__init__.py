"""The subcommands: a module for each, with `define_flags` and `run`."""
