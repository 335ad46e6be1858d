"""Fine-tuning of a backbone on the labels of nodules, in the folds of the probes."""
