"""Reasons to leave a sample out of a result that are not errors."""

EMPTY, NO_THINKING = "empty response", "no thinking"
