from collections.abc import Sequence

from fastkube._ext.tree import Event, KeyValue

class Header:
    """etcdserverpb.ResponseHeader of one member, but for the revision."""

    cluster: int
    member: int
    term: int

    def __init__(self, cluster: int, member: int, term: int) -> None: ...
    def encode(self, revision: int) -> bytes: ...  # as field 1 of a response

def nested(tag: int, payload: bytes) -> bytes: ...
def varint(tag: int, value: int) -> bytes: ...  # nothing for 0, as proto3 has it
def key_values(tag: int, kvs: list[KeyValue], keys_only: bool = False) -> bytes: ...
def events(events: Sequence[Event], prev_kv: bool, compacted: int) -> bytes: ...
