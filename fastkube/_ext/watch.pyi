from collections.abc import Callable, Sequence
from typing import Any

from fastkube._ext.tree import Event, Tree

class Subscription:
    key: bytes
    end: bytes
    start: int
    on_events: Callable[[Sequence[Any]], None]
    closed: bool
    live: bool
    position: int

    def __init__(self, key: bytes, end: bytes, start: int, on_events: Callable[[Sequence[Any]], None]) -> None: ...

class Hub:
    count: int

    def __init__(self, on_error: Callable[[Subscription], None]) -> None: ...
    def add(self, s: Subscription) -> None: ...
    def remove(self, s: Subscription) -> None: ...
    def feed(self, tree: Tree, start: int, end: int) -> None: ...
    def history(self, tree: Tree, s: Subscription, limit: int) -> list[Event]: ...
