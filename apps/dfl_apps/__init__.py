"""Applications: one folder each, found by the entry point group `dfl.apps`."""
