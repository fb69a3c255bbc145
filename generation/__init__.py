"""From prompts to answers, of a model at rest and of one in training."""
