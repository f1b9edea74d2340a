"""One healthy member of a cluster of one: who it is, what it has raised alarm about, and the file that remembers both.

`etcd.json` holds what etcd keeps beside the key space: ids, raft term (one more with each start), alarms, users and roles. It is replaced whole, durably,
before a change is answered.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastkube._ext.etcd import Header
from fastkube.runtime import config
from fastkube.store.embedded import EmbeddedStore
from fastkube.store.etcd import errors
from fastkube.store.segments import in_thread

VERSION = "3.6.0"  # the API that is spoken
CLUSTER_VERSION = "3.6.0"
ALARMS = ("NONE", "NOSPACE", "CORRUPT")
NOSPACE = 1
QUOTA_BYTES_DEFAULT = 2 << 30


@dataclass(slots=True, frozen=True)
class Options:
    """etcd's own settings (its flags of the same names)."""

    name: str = "default"
    client_urls: Sequence[str] = ("http://localhost:2379",)
    peer_urls: Sequence[str] = ("http://localhost:2380",)
    quota_bytes: int = QUOTA_BYTES_DEFAULT  # of all versions in memory; 0: no quota of this server's own
    txn_ops_max: int = 128
    request_bytes_max: int = 1536 << 10
    progress_seconds: float = 600.0  # between progress notifications of an idle watch
    auth_token: str = "simple"
    auth_token_ttl_seconds: float = 300.0
    client_cert_auth: bool = False


@dataclass(frozen=True, slots=True)
class Tls:
    cert: Path
    key: Path
    trusted_ca: Path | None = None  # who signs client certificates
    client_cert_auth: bool = False  # a client without a certificate is refused
    organization: str = ""  # only clients of this organization (O of the certificate's subject) are let in; "": all


@dataclass(slots=True)
class State:
    cluster_id: int
    member_id: int
    term: int = 1
    alarms: list[tuple[int, int]] = field(default_factory=list)  # (member, alarm type)
    auth: dict[str, Any] = field(default_factory=dict)


class Member:
    """`header` is what every answer carries."""

    def __init__(self, store: EmbeddedStore, options: Options, path: Path | None) -> None:
        """`path`: of etcd.json; None: nothing is remembered. Raises ValueError when what is there is no such file."""
        self.store = store
        self.options = options
        self._path = path
        self._writing = asyncio.Lock()
        self.state = self._load()
        self.state.term += 1
        self._write(self._encoded())
        self.header = Header(self.state.cluster_id, self.state.member_id, self.state.term)

    def _load(self) -> State:
        if self._path is None or not self._path.exists():
            return State(secrets.randbits(63) | 1 << 62, secrets.randbits(63) | 1 << 62)
        try:
            found = json.loads(self._path.read_text())
            return State(found["cluster_id"], found["member_id"], found["term"], [(m, a) for m, a in found["alarms"]], found["auth"])
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{self._path} is damaged: {e}") from e

    def _encoded(self) -> str:
        s = self.state
        return json.dumps({"cluster_id": s.cluster_id, "member_id": s.member_id, "term": s.term, "alarms": s.alarms, "auth": s.auth})

    def _write(self, text: str) -> None:
        if self._path is not None:
            config.write_file(self._path, text, 0o600)

    async def save(self) -> None:
        """Make the state durable."""
        async with self._writing:
            await in_thread(self._write, self._encoded())

    def answer(self, make: Callable[..., Any], **fields: Any) -> Any:
        """A response message with its header."""
        response = make(**fields)
        header = response.header
        header.cluster_id, header.member_id, header.raft_term = self.state.cluster_id, self.state.member_id, self.state.term
        header.revision = self.store.revision
        return response

    # Space

    @property
    def size(self) -> int:
        """Bytes of all versions, as etcd's quota counts them."""
        return self.store.size

    def no_space(self) -> bool:
        return any(alarm == NOSPACE for _, alarm in self.state.alarms)

    async def check_space(self, cost: int) -> None:
        """Raise the alarm when `cost` bytes more are over the quota; it stands until it is disarmed."""
        quota = self.options.quota_bytes
        if quota and self.size + cost >= quota:
            await self.activate(self.state.member_id, NOSPACE)
            raise errors.NO_SPACE
        if self.state.alarms and self.no_space():
            raise errors.NO_SPACE

    async def activate(self, member: int, alarm: int) -> None:
        if (member, alarm) not in self.state.alarms:
            self.state.alarms.append((member, alarm))
            await self.save()

    async def deactivate(self, member: int, alarm: int) -> None:
        if (member, alarm) in self.state.alarms:
            self.state.alarms.remove((member, alarm))
            await self.save()
