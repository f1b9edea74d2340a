"""What the commands of the parts have in common: logs, signals, the event loop."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
import uvloop

from fastkube.runtime import logs

Kubeconfig = Annotated[str, typer.Option(help="kubeconfig file with the API server's address and this part's credentials")]


def serve(component: str, run: Callable[[asyncio.Event], Awaitable[None]], errors: tuple[type[Exception], ...] = ()) -> None:
    """Run a part under uvloop until SIGINT or SIGTERM, then let it end cleanly (exit 0). `errors` and those of the operating system end it with
    their text and exit 1."""
    logs.configure(level=os.environ.get("FASTKUBE_LOG_LEVEL", "info"), form=os.environ.get("FASTKUBE_LOG_FORMAT", "json"), component=component)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await run(stop)

    try:
        uvloop.run(main())
    except errors as error:
        fail(str(error))
    except OSError as error:  # a file or directory that cannot be used as was asked
        fail(f"{error.filename2 or error.filename}: {error.strerror}" if error.filename else str(error))


def address(text: str) -> str:
    """An IP address as a flag's value; exit 2 names the flag when it is none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise typer.BadParameter(f'"{text}" is no IP address') from error


def fail(message: str) -> None:
    """Say what is wrong and exit 1."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
