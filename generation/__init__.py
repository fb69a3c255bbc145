"""Generation of answers from prompts, in prediction and during training."""
