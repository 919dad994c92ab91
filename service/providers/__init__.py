"""Floor 4: the outside systems that do the work, one module each, behind one protocol."""
