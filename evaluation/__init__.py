"""What is measured while training and after it: loss, answers, scores, the best step, the report."""
