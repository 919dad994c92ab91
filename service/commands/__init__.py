"""Floor 5: the use cases. Each owns its transaction, and wakes and notifies after the commit."""
