"""OpenAPI: /openapi/v2 (JSON, and protobuf for older kubectl) and /openapi/v3 with a document per group version.

The built-in API's documents lie compressed in data/openapi.zip (made by tools/gen_openapi.py) and are sent as they lie there. Custom resources add their own
v3 documents, and their paths and definitions to the v2 one; that one is spliced and compressed in a thread, when somebody asks, and kept until the next change.
A v3 document's address carries its hash, so that clients keep it for good.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import importlib.resources
import io
import zipfile
from dataclasses import dataclass
from typing import Any

import orjson

from fastkube.api import gnostic, openapi
from fastkube.http.message import Response

Json = Any

PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_PROTOBUF_TYPES = (PROTOBUF, PROTOBUF.replace("v2.v1.0", "v2@v1.0"))  # old kubectl asks for the latter, but cannot read it as a Content-Type
_JSON = "application/json"
_FOREVER = (("Cache-Control", "public, immutable"), ("Expires", "Fri, 31 Dec 2100 00:00:00 GMT"))
GZIP_LEVEL = 4


@dataclass(slots=True)
class Document:
    """One document, compressed, and the hash of its content."""

    compressed: bytes
    hash: str

    @classmethod
    def of(cls, compressed: bytes) -> Document:
        return cls(compressed, hashlib.sha512(compressed).hexdigest().upper())


def accepts(accept: str) -> str:
    """The content type that /openapi/v2 answers with; "" when none of ours is accepted."""
    if not accept:
        return _JSON
    for clause in accept.split(","):
        media = clause.partition(";")[0].strip()
        if media in _PROTOBUF_TYPES:
            return PROTOBUF
        if media in (_JSON, "*/*", "application/*"):
            return _JSON
    return ""


class OpenApi:
    """Answers what the module is about. `custom(key, part)` tells of a group version of custom resources."""

    def __init__(self) -> None:
        self._custom: dict[str, Json] = {}
        self._kept: dict[str, Document] = {}

    def custom(self, key: str, part: Json | None) -> None:
        """The v2 paths and definitions of `apis/GROUP/VERSION`; None when it is no longer served."""
        if part is None:
            self._custom.pop(key, None)
        else:
            self._custom[key] = part
        for stale in [name for name in self._kept if name in ("index", "v2.json", "v2.pb", f"v3/{key}", f"v3/{key.rpartition('/')[0]}")]:
            del self._kept[stale]

    async def answer(self, path: str, accept: str = "", accept_encoding: str = "", if_none_match: str = "", hash: str = "") -> Response | None:
        """The answer to GET `path` (no trailing slash); None when there is no such document. `hash` is the query parameter of that name."""
        if path == "/openapi/v2":
            media = accepts(accept)
            if not media:
                return Response(406, b"", _JSON)
            document = await self._version_2("v2.json" if media == _JSON else "v2.pb")
            return await _sent(document, media, accept_encoding, if_none_match)
        if path == "/openapi/v3":
            return await _sent(await self._index(), _JSON, accept_encoding, if_none_match)
        if not path.startswith("/openapi/v3/"):
            return None
        found = await self._version_3(path.removeprefix("/openapi/v3/"))
        if found is None:
            return None
        if hash and hash != found.hash:
            return Response(301, b"", _JSON, (("Location", f"{path}?hash={found.hash}"),))
        return await _sent(found, _JSON, accept_encoding, if_none_match, _FOREVER if hash else ())

    async def _version_2(self, name: str) -> Document:
        kept = self._kept.get(name)
        if kept is None:
            parts = list(self._custom.values())
            kept = await asyncio.to_thread(_splice, name, parts) if parts else Document.of(_stored(name))
            self._kept[name] = kept
        return kept

    async def _version_3(self, key: str) -> Document | None:
        kept = self._kept.get(f"v3/{key}")
        if kept is None:
            if part := self._custom.get(key):
                definitions = {**orjson.loads(gzip.decompress(_stored("common"))), **part["definitions"]}
                document = openapi.document_v3(part["paths"], definitions, {})
                kept = Document.of(await asyncio.to_thread(gzip.compress, orjson.dumps(document), GZIP_LEVEL, mtime=0))
            elif f"v3/{key}" in _names():
                return Document.of(_stored(f"v3/{key}"))  # not kept: it lies in the page cache
            else:
                return None
            self._kept[f"v3/{key}"] = kept
        return kept

    async def _index(self) -> Document:
        kept = self._kept.get("index")
        if kept is None:
            keys = sorted({n.removeprefix("v3/") for n in _names() if n.startswith("v3/")} | self._custom.keys())
            hashes = {key: (await self._version_3(key)) for key in keys}
            paths = {key: {"serverRelativeURL": f"/openapi/v3/{key}?hash={d.hash}"} for key, d in hashes.items() if d}
            kept = self._kept["index"] = Document.of(gzip.compress(orjson.dumps({"paths": paths}), GZIP_LEVEL, mtime=0))
        return kept


def _archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO((importlib.resources.files("fastkube.server.data") / "openapi.zip").read_bytes()))


_entries: dict[str, str] = {}


def _names() -> dict[str, str]:
    """Document -> its entry in the archive."""
    if not _entries:
        with _archive() as archive:
            _entries.update((name.partition("@")[0], name) for name in archive.namelist())
    return _entries


def _stored(name: str) -> bytes:
    with _archive() as archive:
        return archive.read(_names()[name])


def _splice(name: str, parts: list[Json]) -> Document:
    """The v2 document with the paths and definitions of custom resources."""
    raw = gzip.decompress(_stored(name))
    if name == "v2.pb":
        raw += b"".join(map(gnostic.document, parts))
    else:
        at = int(_names()[name].partition("@")[2])
        paths = b"".join(b"," + orjson.dumps(p["paths"])[1:-1] for p in parts if p["paths"])
        definitions = b"".join(b"," + orjson.dumps(p["definitions"])[1:-1] for p in parts if p["definitions"])
        raw = raw[:at] + paths + raw[at:-2] + definitions + b"}}"
    return Document.of(gzip.compress(raw, GZIP_LEVEL, mtime=0))


async def _sent(document: Document, media: str, accept_encoding: str, if_none_match: str, more: tuple[tuple[str, str], ...] = ()) -> Response:
    etag = f'"{document.hash}"'
    headers = (("ETag", etag), ("Vary", "Accept"), ("Vary", "Accept-Encoding"), *more)
    if etag in [tag.strip() for tag in if_none_match.split(",")]:
        return Response(304, b"", media, headers)
    if "gzip" in accept_encoding:
        return Response(200, document.compressed, media, (*headers, ("Content-Encoding", "gzip")))
    return Response(200, await asyncio.to_thread(gzip.decompress, document.compressed), media, headers)
