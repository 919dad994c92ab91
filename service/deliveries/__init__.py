"""Floor 5: messages to the outside, sent from their rows."""
