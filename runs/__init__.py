"""Runs below a directory: their commands, detached processes, states, metrics and logs, from files. No torch."""
