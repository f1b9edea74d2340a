"""`fastkube version`."""

from __future__ import annotations

from typing import Annotated

import typer

from fastkube import KUBERNETES_VERSION, __version__


def command(output: Annotated[str, typer.Option("--output", "-o", help="text or json")] = "text") -> None:
    """Print the version of fastkube and of the Kubernetes API it serves."""
    if output == "json":
        import orjson

        typer.echo(orjson.dumps({"fastkube": __version__, "kubernetes": KUBERNETES_VERSION}).decode())
    elif output == "text":
        typer.echo(f"fastkube {__version__} (Kubernetes {KUBERNETES_VERSION})")
    else:
        raise typer.BadParameter(f"{output!r} is neither text nor json", param_hint="--output")
