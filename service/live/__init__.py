"""Floor 4½: what happens, to everyone who follows it. Read from Postgres, hinted at by the notifier."""
