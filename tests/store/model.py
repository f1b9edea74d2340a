"""The revision tree as plain Python says it: slow, and easy to see right."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Version:
    key: bytes
    value: bytes
    create: int
    mod: int
    version: int  # 0: a deletion
    lease: int = 0


@dataclass
class Model:
    versions: dict[bytes, list[Version]] = field(default_factory=dict)  # oldest first
    events: list[tuple[Version, Version | None]] = field(default_factory=list)  # in revision order, with what stood before
    head: int = 1
    visible: int = 1
    compacted: int = 0

    def at(self, key: bytes, revision: int) -> Version | None:
        for version in reversed(self.versions.get(key, [])):
            if version.mod <= revision:
                return version if version.version else None
        return None

    def newest(self, key: bytes) -> Version | None:
        return self.at(key, self.head)

    def _append(self, version: Version, prev: Version | None) -> None:
        self.versions.setdefault(version.key, []).append(version)
        self.events.append((version, prev))
        self.head = version.mod

    def put(self, key: bytes, value: bytes, revision: int, expect: int = -1, lease: int = 0) -> Version | None:
        prev = self.newest(key)
        if expect >= 0 and expect != (prev.mod if prev else 0):
            return None
        version = Version(key, value, prev.create if prev else revision, revision, prev.version + 1 if prev else 1, lease)
        self._append(version, prev)
        return version

    def delete(self, key: bytes, revision: int) -> Version | None:
        prev = self.newest(key)
        if prev is not None:
            self._append(Version(key, b"", 0, revision, 0), prev)
        return prev

    def publish(self, revision: int) -> None:
        self.visible = revision

    def rollback(self) -> None:
        while self.events and self.events[-1][0].mod > self.visible:
            version, _ = self.events.pop()
            self.versions[version.key].pop()
            if not self.versions[version.key]:
                del self.versions[version.key]
        self.head = self.visible

    def compact(self, revision: int) -> None:
        self.compacted = max(self.compacted, revision)

    def range(self, key: bytes, end: bytes, revision: int) -> list[Version]:
        found = [self.at(k, revision) for k in sorted(self.versions) if within(k, key, end)]
        return [version for version in found if version is not None]

    def history(self, key: bytes, end: bytes, start: int) -> list[Version]:
        return [version for version, _ in self.events if start <= version.mod <= self.visible and within(version.key, key, end)]


def within(k: bytes, key: bytes, end: bytes) -> bool:
    if not end:
        return k == key
    return k >= key and (end == b"\0" or k < end)
