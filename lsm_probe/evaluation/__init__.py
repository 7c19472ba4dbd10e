"""Evaluation: what a checkpoint answers, and how good its answers are."""
