"""bbolt files (the format of etcd's backend and snapshots): written in one pass from sorted items, read by walking.

A file is pages of 4 KiB: two metas, then whatever the root bucket reaches. Buckets here are one level deep, as etcd's are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

PAGE_BYTES = 4096
MAGIC, FORMAT = 0xED0CDAED, 2
BRANCH, LEAF, META, FREELIST = 0x01, 0x02, 0x04, 0x10
DEPTH_MAX = 32  # of a tree of pages
BUCKET = 0x01  # flag of a leaf element
PAGE = struct.Struct("<QHHI")  # id, flags, count, overflow pages
LEAF_ELEMENT = struct.Struct("<IIII")  # flags, position from here, key size, value size
BRANCH_ELEMENT = struct.Struct("<IIQ")  # position from here, key size, page
ROOT = struct.Struct("<QQ")  # page, sequence
META_BODY = struct.Struct("<IIIIQQQQQ")  # magic, version, page size, flags, root page, root sequence, freelist page, high water mark, transaction


class BoltError(ValueError):
    """What is read is no bbolt file."""


def _fnv64a(data: bytes) -> int:
    digest = 0xCBF29CE484222325
    for byte in data:
        digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return digest


class Writer:
    """`bucket` for each, then `finish`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._next = 2
        self._buckets: list[tuple[bytes, bytes]] = []
        file.write(bytes(2 * PAGE_BYTES))

    def bucket(self, name: bytes, items: Iterable[tuple[bytes, bytes]]) -> None:
        """`items` in ascending order of their keys."""
        self._buckets.append((name, ROOT.pack(self._tree((key, value, 0) for key, value in items), 0)))

    def finish(self) -> None:
        root = self._tree((name, value, BUCKET) for name, value in sorted(self._buckets))
        freelist = self._page(FREELIST, 0, b"")
        self._file.seek(0)
        for transaction in (0, 1):
            body = META_BODY.pack(MAGIC, FORMAT, PAGE_BYTES, 0, root, 0, freelist, self._next, transaction)
            self._file.write((PAGE.pack(transaction, META, 0, 0) + body + struct.pack("<Q", _fnv64a(body))).ljust(PAGE_BYTES, b"\0"))
        self._file.seek(self._next * PAGE_BYTES)

    def _page(self, flags: int, count: int, body: bytes) -> int:
        page, pages = self._next, -(-(PAGE.size + len(body)) // PAGE_BYTES)
        self._file.write((PAGE.pack(page, flags, count, pages - 1) + body).ljust(pages * PAGE_BYTES, b"\0"))
        self._next += pages
        return page

    def _tree(self, items: Iterable[tuple[bytes, bytes, int]]) -> int:
        """A B+ tree of full pages -> its root page."""
        level = self._leaves(items)
        while len(level) > 1:
            level = list(self._branches(level))
        return level[0][1]

    def _leaves(self, items: Iterable[tuple[bytes, bytes, int]]) -> list[tuple[bytes, int]]:
        pages: list[tuple[bytes, int]] = []
        held: list[tuple[bytes, bytes, int]] = []
        size = PAGE.size
        for item in items:
            n = LEAF_ELEMENT.size + len(item[0]) + len(item[1])
            if held and size + n > PAGE_BYTES:
                pages.append((held[0][0], self._leaf(held)))
                held, size = [], PAGE.size
            held.append(item)
            size += n
        if held or not pages:
            pages.append((held[0][0] if held else b"", self._leaf(held)))
        return pages

    def _leaf(self, held: list[tuple[bytes, bytes, int]]) -> int:
        elements: list[bytes] = []
        data: list[bytes] = []
        at = len(held) * LEAF_ELEMENT.size
        for i, (key, value, flags) in enumerate(held):
            elements.append(LEAF_ELEMENT.pack(flags, at - i * LEAF_ELEMENT.size, len(key), len(value)))
            data += (key, value)
            at += len(key) + len(value)
        return self._page(LEAF, len(held), b"".join(elements + data))

    def _branches(self, children: list[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
        held: list[tuple[bytes, int]] = []
        size = PAGE.size
        for child in children:
            n = BRANCH_ELEMENT.size + len(child[0])
            if len(held) > 1 and size + n > PAGE_BYTES:
                yield held[0][0], self._branch(held)
                held, size = [], PAGE.size
            held.append(child)
            size += n
        yield held[0][0], self._branch(held)

    def _branch(self, held: list[tuple[bytes, int]]) -> int:
        elements: list[bytes] = []
        data: list[bytes] = []
        at = len(held) * BRANCH_ELEMENT.size
        for i, (key, page) in enumerate(held):
            elements.append(BRANCH_ELEMENT.pack(at - i * BRANCH_ELEMENT.size, len(key), page))
            data.append(key)
            at += len(key)
        return self._page(BRANCH, len(held), b"".join(elements + data))


class Reader:
    """`data` is the whole file. Raises BoltError."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        metas = [meta for at in (0, PAGE_BYTES) if (meta := self._meta(at)) is not None]
        if not metas:
            raise BoltError("no valid meta page")
        _, _, self._page_bytes, _, root, _, _, _, _ = max(metas, key=lambda meta: meta[8])
        self._roots = {key: ROOT.unpack_from(value)[0] if ROOT.unpack_from(value)[0] else value[ROOT.size :] for key, value in self._walk(root)}

    def _meta(self, at: int) -> tuple[int, ...] | None:
        body = bytes(self._data[at + PAGE.size : at + PAGE.size + META_BODY.size])
        if len(body) < META_BODY.size or META_BODY.unpack(body)[:2] != (MAGIC, FORMAT):
            return None
        (checksum,) = struct.unpack_from("<Q", self._data, at + PAGE.size + META_BODY.size)
        return META_BODY.unpack(body) if checksum == _fnv64a(body) else None

    def bucket(self, name: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Its items in order; none where there is no such bucket."""
        root = self._roots.get(name)
        if isinstance(root, bytes):  # a small one, in line
            yield from self._items(memoryview(root), 0)
        elif root is not None:
            yield from self._walk(root)

    def _walk(self, page: int, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
        if depth > DEPTH_MAX:
            raise BoltError("pages in a circle")
        yield from self._items(self._data, page * self._page_bytes, depth)

    def _items(self, data: memoryview, at: int, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
        try:
            _, flags, count, _ = PAGE.unpack_from(data, at)
            at += PAGE.size
            for i in range(count):
                if flags & LEAF:
                    here = at + i * LEAF_ELEMENT.size
                    _, position, keys, values = LEAF_ELEMENT.unpack_from(data, here)
                    start = here + position
                    yield bytes(data[start : start + keys]), bytes(data[start + keys : start + keys + values])
                elif flags & BRANCH:
                    yield from self._walk(BRANCH_ELEMENT.unpack_from(data, at + i * BRANCH_ELEMENT.size)[2], depth + 1)
                else:
                    raise BoltError(f"a page with flags {flags:#x} where keys should be")
        except struct.error as e:
            raise BoltError("the file is cut") from e
