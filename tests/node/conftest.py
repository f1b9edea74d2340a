from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.node.world import World, new_world, own_network


@pytest.fixture(scope="package")
def node_network():
    """Not for the whole session: what runs after these tests wants the machine's own network."""
    if os.geteuid() != 0:
        pytest.fail("containers need root")
    with own_network():
        yield


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def world(node_network: None) -> AsyncIterator[World]:
    async with new_world(Path(tempfile.mkdtemp(prefix="fknode-"))) as made:
        yield made
