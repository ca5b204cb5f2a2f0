"""The command line: flags read from the committed schema, help, values."""
