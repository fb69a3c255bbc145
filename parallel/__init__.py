"""The ranks of a run: how they start, connect, agree and stop, and what ZeRO does to their parameters."""
