from collections.abc import Callable
from typing import Any

class KeyValue:
    """One version of one key; immutable but for `attrs`."""

    key: bytes
    value: bytes  # the very object that was put, but for a revision spliced in
    create_revision: int
    mod_revision: int
    version: int  # 1 for a creation, then one more with each put
    lease: int  # 0: none
    # A free slot for the reader's own digest of the value (labels, fields ...): None until somebody sets it, and after a restart. It must not
    # refer back to the KeyValue: the cycle collector does not look into it.
    attrs: Any

class Event:
    """One change of one key, shared by all watchers that see it."""

    deleted: bool
    kv: KeyValue  # for a deletion: the key, its mod_revision is the deletion's, value b""
    prev: KeyValue | None  # what stood there before; None for a creation
    # A free slot, as above: the API server keeps encoded watch frames here, so that each is made once. Emptied for events that are no longer
    # among the newest 512.
    attrs: Any

class Tree:
    head: int
    visible: int
    compacted: int
    live_bytes: int
    history_bytes: int
    log_start: int
    log_end: int
    visible_at: int

    def __init__(self, compacted_error: Callable[[int], Exception] = ..., future_error: Callable[[str], Exception] = ...) -> None: ...
    def position(self, revision: int) -> int: ...
    def event(self, position: int) -> Event: ...
    def put(
        self, key: bytes, value: bytes, revision: int, expect: int = -1, lease: int = 0, revision_at: int = -1, attrs: Any = None
    ) -> Any: ...  # Event, or None when `expect` does not hold
    def delete(self, key: bytes, revision: int) -> Any: ...  # Event, or None when there is nothing to delete
    def newest(self, key: bytes) -> KeyValue | None: ...
    def publish(self, revision: int) -> None: ...
    def rollback(self) -> list[Event]: ...
    def get(self, key: bytes, revision: int = 0) -> KeyValue | None: ...
    def range(
        self, key: bytes, end: bytes, revision: int = 0, limit: int = 0, count_only: bool = False, head: bool = False
    ) -> tuple[list[KeyValue], int, int]: ...
    def compact(self, revision: int) -> None: ...
    def prune(self, revision: int, limit: int) -> bool: ...
    def dump(self, after: bytes | None, revision: int, size: int) -> tuple[bytes, bytes | None, int]: ...
    def load(self, data: bytes | memoryview, revision: int) -> int: ...
    def restore(self, revision: int) -> None: ...
    def leased(self) -> list[tuple[int, bytes]]: ...
    def __len__(self) -> int: ...
