"""The command line: one file a command, and nothing that the library could not do."""
