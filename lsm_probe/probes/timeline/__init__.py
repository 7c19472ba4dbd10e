"""Timeline: what the response takes from one utterance, over time."""
