"""Snapshots in etcd's own format: a bbolt file with the whole history since the compacted revision, and its SHA-256 behind it.

While it is made, writes go on: history is held, read in slices on the loop, and put in order and written by a thread.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any, BinaryIO

from fastkube._ext.tree import Event
from fastkube._ext.wal import crc32c
from fastkube.store.embedded import EmbeddedStore, Held
from fastkube.store.etcd import bolt, messages
from fastkube.store.etcd.member import Member
from fastkube.store.segments import in_thread

SLICE_BYTES = 256 << 10
SLICE_EVENTS = 500
BLOB_BYTES = 64 << 10  # of one message of the stream
DUMPED = struct.Struct("<IIqqqq")  # what Tree.dump puts before a key and its value: their sizes, create, mod, version, lease
REVISION = struct.Struct(">qcq")

Row = tuple[bytes, bytes]  # a key (revision) and a value of the bucket


async def digest(store: EmbeddedStore, revision: int) -> tuple[int, int]:
    """CRC32C of what stands at a revision (0: the visible one) -> (digest, the revision). Raises Compacted, FutureRevision."""
    async with store.held(revision if revision > 0 else -1) as held:
        crc = 0
        async for data in held.dump(SLICE_BYTES):
            crc = crc32c(data, crc)
        return crc, held.revision


async def stream(member: Member) -> AsyncIterator[tuple[int, bytes]]:
    """The snapshot of now -> (bytes that remain after this piece, the piece)."""
    state = member.state
    with tempfile.TemporaryFile() as file:
        leases = [(lease, member.store.lease_status(lease).ttl) for lease in member.store.leases()]
        async with member.store.held(member.store.compacted) as held:
            dumped = [data async for data in held.dump(SLICE_BYTES)]
            events = [event async for events in held.events(SLICE_EVENTS) for event in events]
        buckets = _small_buckets(state.alarms, state.auth, leases, held)
        size = await in_thread(_write, file, dumped, events, buckets)
        file.seek(0)
        sha = hashlib.sha256()
        remaining = size + sha.digest_size
        while blob := await in_thread(file.read, BLOB_BYTES):
            sha.update(blob)
            remaining -= len(blob)
            yield remaining, blob
        yield 0, sha.digest()


def _small_buckets(alarms: list[tuple[int, int]], auth: dict[str, Any], leases: list[tuple[int, int]], held: Held) -> dict[bytes, list[Row]]:
    """Everything but the keys. Passwords are this store's hashes: a real etcd that restores them wants them set anew."""
    users = [
        messages.User(name=name.encode(), password=user["password"].encode(), roles=user["roles"], options={"no_password": not user["password"]})
        for name, user in auth["users"].items()
    ]
    roles = [
        messages.Role(name=name.encode(), keyPermission=[{"permType": t, "key": bytes.fromhex(k), "range_end": bytes.fromhex(e)} for t, k, e in permissions])
        for name, permissions in auth["roles"].items()
    ]
    index = struct.pack(">Q", held.visible)
    meta = [(b"consistent_index", index), (b"term", struct.pack(">Q", 1))]
    if held.revision > 0:
        meta += [(name, REVISION.pack(held.revision, b"_", 0)) for name in (b"finishedCompactRev", b"scheduledCompactRev")]
    return {
        b"alarm": [(messages.AlarmMember(memberID=m, alarm=a).SerializeToString(), b"") for m, a in alarms],
        b"auth": [(b"authEnabled", bytes([auth["enabled"]])), (b"authRevision", struct.pack(">Q", auth["revision"]))],
        b"authRoles": [(r.name, r.SerializeToString()) for r in roles],
        b"authUsers": [(u.name, u.SerializeToString()) for u in users],
        b"cluster": [],
        b"lease": [(struct.pack(">q", lease), messages.Lease(ID=lease, TTL=ttl).SerializeToString()) for lease, ttl in leases],
        b"members": [],
        b"members_removed": [],
        b"meta": meta,
    }


def _write(file: BinaryIO, dumped: list[bytes], events: list[Event], buckets: dict[bytes, list[Row]]) -> int:
    """-> the size of the file."""
    writer = bolt.Writer(file)
    for name, rows in buckets.items():
        writer.bucket(name, sorted(rows))
    writer.bucket(b"key", _rows(dumped, events))
    writer.finish()
    return file.tell()


def _rows(dumped: list[bytes], events: list[Event]) -> Iterator[Row]:
    """Every version, by revision. Those of one revision are numbered as they come: in the order they were made where the log still knows it."""
    standing = []
    for data in dumped:
        at = 0
        while at < len(data):
            keys, values, create, mod, version, lease = DUMPED.unpack_from(data, at)
            at += DUMPED.size
            standing.append((mod, data[at : at + keys], data[at + keys : at + keys + values], create, version, lease))
            at += keys + values
    standing.sort(key=lambda row: row[0])
    main = sub = -1
    for mod, key, value, create, version, lease in standing:
        main, sub = mod, sub + 1 if mod == main else 0
        yield (
            REVISION.pack(main, b"_", sub),
            messages.KeyValue(key=key, value=value, create_revision=create, mod_revision=mod, version=version, lease=lease).SerializeToString(),
        )
    for event in events:
        kv = event.kv
        main, sub = kv.mod_revision, sub + 1 if kv.mod_revision == main else 0
        revision = REVISION.pack(main, b"_", sub)
        if event.deleted:
            yield revision + b"t", messages.KeyValue(key=kv.key).SerializeToString()
        else:
            message = messages.KeyValue(
                key=kv.key, value=kv.value, create_revision=kv.create_revision, mod_revision=kv.mod_revision, version=kv.version, lease=kv.lease
            )
            yield revision, message.SerializeToString()
