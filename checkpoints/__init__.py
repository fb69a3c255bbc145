"""What a checkpoint and a resume state are: written whole, read once; merging."""
