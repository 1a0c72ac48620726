"""The command line: one file a group, imported only when used."""
