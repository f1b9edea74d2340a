from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastkube.runtime import entropy
from tests.proxy.netns import World, require


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A node, pods a and b behind its bridge, a client outside."""
    require()
    world = World(f"fkx{entropy.suffix()}")
    try:
        world.pods = {"a": world.pod("a", "10.244.0.2"), "b": world.pod("b", "10.244.0.3")}
        yield world
    finally:
        world.close()
