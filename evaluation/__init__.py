"""Evaluation during and after training: loss, answers, scores, the best step, the report."""
