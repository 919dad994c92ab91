"""Floor 7: the HTTP door. Unpack, call one use case, pack."""
