"""Beside the house: local stand-ins of outside systems, for tests and `hitl demo`; the service never uses them."""
