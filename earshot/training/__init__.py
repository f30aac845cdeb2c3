"""Training heads on caches: folds, data, trainer, checkpoints, out-of-fold predictions."""
