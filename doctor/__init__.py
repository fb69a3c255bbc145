"""`train.py --dry_run`: check the data and estimate a run's memory before training."""
