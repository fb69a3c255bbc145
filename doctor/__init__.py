"""What `train.py --dry_run` shows before anything is trained: the data, and the memory that a run would take."""
