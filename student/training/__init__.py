"""One training run: configuration, set-up, losses, weights, checkpoints, validation and log."""
