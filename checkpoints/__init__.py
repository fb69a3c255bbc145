"""Checkpoints and resume states: atomic writes, one read into one object; merging."""
