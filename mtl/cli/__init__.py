"""The command line, one file a command; `main` picks the command."""
