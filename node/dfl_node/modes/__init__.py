"""The ways to train together, one file each."""
