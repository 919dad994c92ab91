"""Floor 3: pure decisions. No await, no I/O, no clock: what is needed comes in as an argument."""
