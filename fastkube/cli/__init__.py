"""The `fastkube` command; the only place where concrete parts are put together."""

from fastkube.cli.app import main

__all__ = ["main"]
