"""Runs of AI providers that stop where a human must look."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("hitl-service")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
