"""Training of LSM checkpoints with transformers' Trainer."""
