"""Floor 4: Postgres, the truth. One query, one function; it never enqueues and never notifies."""
