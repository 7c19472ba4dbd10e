"""Training: the core that makes the checkpoints the probes look into, on transformers' Trainer."""
