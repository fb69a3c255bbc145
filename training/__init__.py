"""The phases of a run: checks, ranks, DeepSpeed, data and model, guards, metrics, saving."""
