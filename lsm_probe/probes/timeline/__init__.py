"""Timeline: which moments of one utterance the response attends to."""
