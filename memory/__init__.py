"""Estimate a run's memory per rank from the model's shapes; docs/memory.md has the formulas."""
