"""The API server over the embedded store, from its configuration to its end."""

from __future__ import annotations

import asyncio
import gc

from fastkube.server.app import ApiServer
from fastkube.server.config import Config, StartError
from fastkube.store.embedded import EmbeddedStore
from fastkube.store.interface import StoreError

GC_THRESHOLDS = (50_000, 20, 100)  # what a request allocates is freed by reference counts; cycles are few


HISTORY_SECONDS = 300.0  # upstream compacts every five minutes
HISTORY_BYTES_MAX = 48 << 20


async def open_server(config: Config) -> ApiServer:
    """A server that listens; `await server.close()` ends it. Raises StartError, StoreError."""
    server = ApiServer(config, EmbeddedStore(config.data_dir, fsync=config.fsync, history_seconds=HISTORY_SECONDS, history_bytes=HISTORY_BYTES_MAX))
    try:
        await server.start()
    except (StartError, StoreError, OSError, asyncio.CancelledError):
        await server.close()
        raise
    gc.collect()
    gc.freeze()  # what the start made stays
    gc.set_threshold(*GC_THRESHOLDS)
    return server


async def run(config: Config, stop: asyncio.Event) -> None:
    """Serve until `stop`. Raises StartError, StoreError."""
    server = await open_server(config)
    try:
        await stop.wait()
    finally:
        await server.close()
