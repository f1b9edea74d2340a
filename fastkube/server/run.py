"""The API server over the embedded store, from its configuration to its end."""

from __future__ import annotations

import asyncio

from fastkube.server.app import ApiServer
from fastkube.server.config import Config, StartError
from fastkube.store.embedded import EmbeddedStore
from fastkube.store.interface import StoreError


async def open_server(config: Config) -> ApiServer:
    """A server that listens; `await server.close()` ends it. Raises StartError, StoreError."""
    server = ApiServer(config, EmbeddedStore(config.data_dir, fsync=config.fsync))
    try:
        await server.start()
    except (StartError, StoreError, OSError, asyncio.CancelledError):
        await server.close()
        raise
    return server


async def run(config: Config, stop: asyncio.Event) -> None:
    """Serve until `stop`. Raises StartError, StoreError."""
    server = await open_server(config)
    try:
        await stop.wait()
    finally:
        await server.close()
