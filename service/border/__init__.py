"""Floor 7, its threshold: what the doors of programs and of people have in common."""
