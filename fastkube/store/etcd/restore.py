"""Restore: a snapshot file, ours or a real etcd's, becomes a data directory that stands at the snapshot's revision.

What stood there is there, with its revisions and versions; history before is compacted. Users and roles come along; passwords of a real etcd (bcrypt) do
not verify here and are to be set anew.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
from pathlib import Path

from fastkube._ext.tree import Tree
from fastkube.runtime import config
from fastkube.store import segments, snapshot
from fastkube.store.etcd import messages
from fastkube.store.etcd.backup import DUMPED, REVISION
from fastkube.store.etcd.bolt import BoltError, Reader
from fastkube.store.interface import Compacted, FutureRevision

SHA_BYTES = 32
STATE = "etcd.json"


class RestoreError(Exception):
    """The snapshot cannot be restored; the text says why."""


async def restore(file: Path, directory: Path, *, skip_hash_check: bool = False) -> tuple[int, int]:
    """-> (revision, number of keys). The directory must not exist yet. Raises RestoreError, OSError."""
    if directory.exists():
        raise RestoreError(f"data-dir {directory} exists")
    data = file.read_bytes()
    if len(data) % 512 == SHA_BYTES:
        body, sha = data[:-SHA_BYTES], data[-SHA_BYTES:]
        if not skip_hash_check and hashlib.sha256(body).digest() != sha:
            raise RestoreError(f"{file} does not match its checksum")
    elif skip_hash_check:
        body = data
    else:
        raise RestoreError(f"{file} has no checksum (a copy of a database file is restored with --skip-hash-check)")
    try:
        reader = Reader(memoryview(body))
        tree, revision = _tree(reader)
        leases = [(lease.ID, lease.TTL) for lease in (messages.Lease.FromString(value) for _, value in reader.bucket(b"lease"))]
        state = _state(reader)
    except (BoltError, struct.error, ValueError) as e:
        raise RestoreError(f"{file} is damaged: {e}") from e
    store_id = secrets.randbits(64)
    directory.mkdir(parents=True, mode=0o700)
    await snapshot.write(directory, store_id, tree, revision, leases, 1)
    segments.create_segment(directory, store_id, 1)
    config.write_file(directory / STATE, json.dumps(state), 0o600)
    return revision, len(tree)


def _tree(reader: Reader) -> tuple[Tree, int]:
    """What stands at the last revision."""
    standing: dict[bytes, bytes] = {}
    revision = 1
    for name, value in reader.bucket(b"key"):
        revision, _, _ = REVISION.unpack_from(name)
        kv = messages.KeyValue.FromString(value)
        if len(name) > REVISION.size:  # a deletion
            standing.pop(kv.key, None)
        else:
            head = DUMPED.pack(len(kv.key), len(kv.value), kv.create_revision, kv.mod_revision, kv.version, kv.lease)
            standing[kv.key] = head + kv.key + kv.value
    tree = Tree(Compacted, FutureRevision)
    tree.restore(revision)
    for key in sorted(standing):
        tree.load(standing[key], revision)
    return tree, revision


def _state(reader: Reader) -> dict[str, object]:
    """A new member that remembers users, roles and whether they count."""
    auth = dict(reader.bucket(b"auth"))
    users = [messages.User.FromString(value) for _, value in reader.bucket(b"authUsers")]
    roles = [messages.Role.FromString(value) for _, value in reader.bucket(b"authRoles")]
    return {
        "cluster_id": secrets.randbits(63) | 1 << 62,
        "member_id": secrets.randbits(63) | 1 << 62,
        "term": 1,
        "alarms": [],
        "auth": {
            "enabled": auth.get(b"authEnabled", b"\0") == b"\1",
            "revision": int.from_bytes(auth.get(b"authRevision", b"\0\1"), "big"),
            "users": {user.name.decode(): {"password": user.password.decode(), "roles": sorted(user.roles)} for user in users},
            "roles": {role.name.decode(): [[int(p.permType), p.key.hex(), p.range_end.hex()] for p in role.keyPermission] for role in roles},
        },
    }
