"""Options, DeepSpeed config and engine, checkpoints, metrics: what training needs besides data, modes and methods."""
