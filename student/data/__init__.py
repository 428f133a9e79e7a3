"""What the trainer reads: index rows joined with priors, cropped, degraded and sampled."""
