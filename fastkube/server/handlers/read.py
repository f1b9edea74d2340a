"""get and list: stored bytes out, at a revision (k8s.io/apiserver/pkg/endpoints/handlers/get.go, storage semantics of resourceVersion).

Guarantees: a list is one revision's state, whatever is written meanwhile, and so are all pages of its continue tokens, until compaction; a list
holds references to stored values and is copied piece by piece while it is written, so its memory does not grow with its size.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import orjson

from fastkube._ext import items
from fastkube.api import codec, errors, tables
from fastkube.api.errors import ApiError, bad_request
from fastkube.http.message import Pieces, Request, Response
from fastkube.server.handlers.negotiation import JSON, Form, negotiate, render
from fastkube.server.handlers.selecting import Selected, select
from fastkube.server.registry.endpoint import Endpoint
from fastkube.store.interface import Compacted, Store

PIECE_BYTES_MAX = 64 * 1024  # copied together at a time: stays in the cache
PAGE_KEYS_MAX = 10_000  # looked at together when a selector thins a limited list out
DECODED_ITEMS_MAX = 100  # decoded in one turn of the loop, for tables and conversions

_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token "
    "in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, "
    "or deleted between the time the first chunk was returned and now may show up in the list."
)


def revision_of(text: str) -> int:
    """A resourceVersion parameter: 0 when empty. ApiError 400."""
    if not text:
        return 0
    if not text.isascii() or not text.isdecimal() or len(text) > 19:
        raise bad_request(f'invalid resource version "{text[:64]}"')
    return int(text)


def too_large(asked: int, current: int) -> ApiError:
    """504: a resourceVersion that this store has not reached (storage.NewTooLargeResourceVersionError)."""
    message = f"Too large resource version: {asked}, current: {current}"
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return ApiError(504, "Timeout", f"Timeout: {message}", {"causes": [cause], "retryAfterSeconds": 1})


def compacted(text: str, token: str = "") -> ApiError:
    return _Gone(text, token) if token else errors.gone(text)


class _Gone(ApiError):
    """410 whose ListMeta carries the token to go on with."""

    def __init__(self, message: str, token: str) -> None:
        super().__init__(410, "Expired", message)
        self.token = token

    def status(self) -> dict[str, Any]:
        return {**super().status(), "metadata": {"continue": self.token}}


# ---- continue tokens: {"v": "meta.k8s.io/v1", "rv": revision (-1: whatever is now), "start": the key behind the prefix}


def encode_continue(revision: int, start: bytes) -> str:
    token = {"v": "meta.k8s.io/v1", "rv": revision, "start": start.decode("utf-8", "surrogateescape")}
    return base64.urlsafe_b64encode(orjson.dumps(token)).rstrip(b"=").decode()


def decode_continue(token: str) -> tuple[int, bytes]:
    """(revision, start). ApiError 400."""
    try:
        raw = orjson.loads(base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True))
        if raw["v"] != "meta.k8s.io/v1":
            raise ValueError("unknown version")
        revision, start = int(raw["rv"]), str(raw["start"]).encode()
    except (binascii.Error, ValueError, KeyError, TypeError) as e:
        raise bad_request("continue key is not valid") from e
    if not start or revision == 0 or revision < -1 or b"/../" in b"/" + start + b"/" or start.startswith(b"/"):
        raise bad_request("continue key is not valid")
    return revision, start


class Options(NamedTuple):
    """ListOptions as far as they say what state is meant."""

    revision: int = 0  # read at; 0: the visible one
    start: bytes = b""  # key to go on from
    limit: int = 0
    inconsistent: bool = False


def list_options(request: Request, store: Store, endpoint: Endpoint) -> Options:
    """The query of a list. ApiError 400, 410, 504."""
    if not request.raw_query:
        return Options()
    limit_text = request.param("limit")
    if limit_text and not limit_text.lstrip("-").isdecimal():
        raise bad_request(f'strconv.ParseInt: parsing "{limit_text[:64]}": invalid syntax')
    limit = max(0, int(limit_text)) if limit_text and len(limit_text) < 19 else 0
    asked = request.param("resourceVersion")
    match = request.param("resourceVersionMatch")
    token = request.param("continue")
    _check_match(endpoint, asked, match, token, request.param("sendInitialEvents"))
    if token:
        if asked and asked != "0":
            raise bad_request("specifying resource version is not allowed when using continue")
        revision, start = decode_continue(token)
        if revision > 0 and revision < store.compacted:
            raise compacted(_EXPIRED, encode_continue(-1, start))
        return Options(max(revision, 0), endpoint.prefix + start, limit, revision < 0)
    revision = revision_of(asked)
    if revision > store.revision:
        raise too_large(revision, store.revision)
    exact = revision and (match == "Exact" or (not match and limit))
    if exact and revision < store.compacted:
        raise compacted("The resourceVersion for the provided list is too old.")
    return Options(revision if exact else 0, b"", limit)


def _check_match(endpoint: Endpoint, asked: str, match: str, token: str, initial: str) -> None:
    problems = []
    if initial:
        problems.append(errors.forbidden_field("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    if match:
        if not asked:
            problems.append(errors.forbidden_field("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided"))
        if token:
            problems.append(errors.forbidden_field("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided"))
        if match not in ("Exact", "NotOlderThan"):
            problems.append(errors.not_supported("resourceVersionMatch", match, ["Exact", "NotOlderThan"]))
        if match == "Exact" and asked == "0":
            problems.append(errors.forbidden_field("resourceVersionMatch", 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'))
    if problems:
        raise errors.invalid("ListOptions", "meta.k8s.io", "", problems)


class Page(NamedTuple):
    """What a list found."""

    kvs: list[Any]
    revision: int
    token: str = ""
    remaining: int | None = None


def find(store: Store, endpoint: Endpoint, selected: Selected, options: Options) -> Page:
    """The versions a list is about; raises ApiError 410 when the revision is gone."""
    start, end = selected.start, selected.end
    if options.start:
        if options.start < start:
            raise bad_request("continue key is not valid")
        start = options.start
    at = options.revision
    try:
        if selected.key:
            kv = store.get(selected.key, at) if not options.start else None
            return Page([kv] if kv is not None and selected.takes(kv) else [], at or store.revision)
        if not options.limit:
            if selected.term is not None and not at and not options.start and endpoint.indexes is not None:
                candidates = endpoint.indexes.find(selected.term, start, end)
                if candidates is not None:
                    return Page(selected.filter(candidates), store.revision)
            found = store.range(start, end, at)
            return Page(selected.filter(found.kvs), at or found.revision)
        return _page(store, endpoint, selected, start, end, at, options)
    except Compacted as e:
        raise compacted(
            _EXPIRED if options.start else "The resourceVersion for the provided list is too old.",
            encode_continue(-1, options.start[len(endpoint.prefix) :]) if options.start else "",
        ) from e


def _page(store: Store, endpoint: Endpoint, selected: Selected, start: bytes, end: bytes, at: int, options: Options) -> Page:
    kvs: list[Any] = []
    size = options.limit
    while True:
        found = store.range(start, end, at, size)
        at = at or found.revision
        taken = selected.filter(found.kvs)
        room = options.limit - len(kvs)
        if len(taken) > room or (len(taken) == room and found.more):
            kvs += taken[:room]
            last = kvs[-1].key
            # the page may end inside the keys that were read
            remaining = None
            if selected.everything:
                remaining = found.count - room
            return Page(kvs, at, encode_continue(-1 if options.inconsistent else at, last[len(endpoint.prefix) :] + b"\0"), remaining)
        kvs += taken
        if not found.more:
            return Page(kvs, at)
        start = found.kvs[-1].key + b"\0"
        size = min(size * 2, PAGE_KEYS_MAX)


def list_head(endpoint: Endpoint, page: Page) -> bytes:
    """`{"kind":"PodList",...,"items":[`"""
    more = b',"continue":"%b"' % page.token.encode() if page.token else b""
    if page.token and page.remaining is not None:
        more += b',"remainingItemCount":%d' % page.remaining
    return b'%b"resourceVersion":"%d"%b},"items":[' % (endpoint.list_opening, page.revision, more)


def list_body(endpoint: Endpoint, page: Page) -> bytes | Pieces:
    """The list as JSON over the stored bytes."""
    kvs, skip = page.kvs, endpoint.opening if not endpoint.resource.custom else b""
    head, length = list_head(endpoint, page), items.length(page.kvs, skip)
    if length <= PIECE_BYTES_MAX:
        return b"%b%b]}\n" % (head, items.piece(kvs, skip, 0, length)[0]) if kvs else head + b"]}\n"

    def pieces() -> Iterator[bytes]:
        yield head
        at = 0
        while at < len(kvs):
            piece, at = items.piece(kvs, skip, at, PIECE_BYTES_MAX)
            yield piece
        yield b"]}\n"

    return Pieces(len(head) + length + 3, pieces)


def get_revision(request: Request, store: Store) -> None:
    """A get answers with the newest state, which is as new as any revision asked for, unless that one lies ahead. ApiError 400, 504."""
    if request.raw_query:
        asked = revision_of(request.param("resourceVersion"))
        if asked > store.revision:
            raise too_large(asked, store.revision)


def get(store: Store, endpoint: Endpoint, request: Request) -> Response:
    info = request.info
    kv = store.get(endpoint.resource.key(info.namespace, info.name))
    get_revision(request, store)
    if kv is None:
        negotiate(request)
        raise errors.not_found(endpoint.plural, endpoint.group, info.name)
    return one(endpoint, request, kv)


def one(endpoint: Endpoint, request: Request, kv: Any, status: int = 200, headers: Any = ()) -> Response:
    """The answer that shows one stored version."""
    return shown(request, endpoint.served(kv), endpoint.printer, status, headers)


def shown(request: Request, value: bytes, printer: tables.Printer, status: int = 200, headers: Any = ()) -> Response:
    """The answer that shows one object, given as JSON in the served version."""
    form = negotiate(request)
    if form.plain:
        return Response(status, value, JSON, headers)
    if form.as_ == "Table":
        value = tables.render(printer, [value], include_of(request), version=form.version)
    elif form.as_ == "PartialObjectMetadataList":
        raise errors.not_acceptable("you requested PartialObjectMetadataList, but the requested object is not a list")
    elif form.as_:
        value = partial(value, form.version)
    if form.media != JSON or form.pretty:
        value = render(orjson.loads(value), form)
    return Response(status, value, form.media, headers)


def include_of(request: Request) -> str:
    """includeObject of TableOptions. ApiError 400."""
    include = request.param("includeObject") or "Metadata"
    if include not in tables.INCLUDE:
        raise bad_request(f'unrecognized includeObject value: "{include[:64]}"')
    return include


def partial(value: bytes, version: str) -> bytes:
    """The PartialObjectMetadata of an object's JSON."""
    return b'{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/%b","metadata":%b}' % (version.encode(), codec.find(value, (b"metadata",)) or b"{}")


def list_(store: Store, endpoint: Endpoint, request: Request) -> Response:
    form = negotiate(request)
    selected = select(endpoint, request)
    page = find(store, endpoint, selected, list_options(request, store, endpoint))
    if form.plain and not endpoint.converts:
        return Response(200, list_body(endpoint, page), JSON)
    return list_form(endpoint, request, page, form)


def list_form(endpoint: Endpoint, request: Request, page: Page, form: Form) -> Response:
    """A list that is not the stored bytes: a table, metadata only, another version, YAML."""
    metadata: dict[str, Any] = {"resourceVersion": str(page.revision)}
    if page.token:
        metadata["continue"] = page.token
        if page.remaining is not None:
            metadata["remainingItemCount"] = page.remaining
    if form.as_ == "PartialObjectMetadata":
        raise errors.not_acceptable("you requested PartialObjectMetadata, but the requested object is a list")
    head, make = _list_form(endpoint, request, form, metadata)
    if form.media == JSON and not form.pretty:
        if len(page.kvs) <= DECODED_ITEMS_MAX:
            return Response(200, b"%b%b]}\n" % (head, make(page.kvs)), JSON)
        return Response(200, _made(head, make, page.kvs), JSON)
    return Response(200, render(orjson.loads(b"%b%b]}" % (head, make(page.kvs))), form), form.media)


Make = Callable[[list[Any]], bytes]


def _list_form(endpoint: Endpoint, request: Request, form: Form, metadata: dict[str, Any]) -> tuple[bytes, Make]:
    """(the list up to its items, what makes the JSON of some items without the brackets)."""
    if form.as_ == "Table":
        printer, include = endpoint.printer, include_of(request)
        head = tables.render(printer, [], include, list_meta=metadata, version=form.version)[:-2]

        def rows(kvs: list[Any]) -> bytes:
            table = tables.render(printer, map(endpoint.served, kvs), include, list_meta={}, version=form.version, headers=False)
            return table[table.index(b'"rows":[') + 8 : -2]

        return head, rows
    if form.as_:
        opening = {"kind": form.as_, "apiVersion": f"meta.k8s.io/{form.version}", "metadata": metadata, "items": []}
        return orjson.dumps(opening)[:-2], lambda kvs: b",".join(partial(endpoint.served(kv), form.version) for kv in kvs)
    opening = {"kind": endpoint.kind + "List", "apiVersion": endpoint.api_version, "metadata": metadata, "items": []}
    return orjson.dumps(opening)[:-2], lambda kvs: orjson.dumps([_untyped(endpoint, kv) for kv in kvs])[1:-1]


def _untyped(endpoint: Endpoint, kv: Any) -> dict[str, Any]:
    """A list's item: a built-in one does not repeat its type."""
    obj = endpoint.decode(kv)
    if not endpoint.resource.custom:
        obj.pop("apiVersion", None)
        obj.pop("kind", None)
    return obj


async def _made(head: bytes, make: Make, kvs: list[Any]) -> AsyncIterator[bytes]:
    """Some items in each turn of the loop."""
    yield head
    for start in range(0, len(kvs), DECODED_ITEMS_MAX):
        part = make(kvs[start : start + DECODED_ITEMS_MAX])
        yield b"," + part if start else part
        await asyncio.sleep(0)
    yield b"]}\n"
