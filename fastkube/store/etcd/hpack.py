"""HPACK (RFC 7541), the decoding side: header blocks of one connection to (name, value) pairs. Answers need no compression beyond the static table.

Bounded: a block gives at most HEADERS_MAX headers of HEADER_BYTES_MAX altogether, the dynamic table holds TABLE_BYTES_MAX.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache

TABLE_BYTES_MAX = 4096
HEADERS_MAX = 100
HEADER_BYTES_MAX = 64 << 10
ENTRY_OVERHEAD_BYTES = 32

Header = tuple[bytes, bytes]

# Appendix A, in order.
_STATIC: list[Header] = [
    (name.encode(), value.encode())
    for name, _, value in (
        line.partition("=")
        for line in """\
:authority=
:method=GET
:method=POST
:path=/
:path=/index.html
:scheme=http
:scheme=https
:status=200
:status=204
:status=206
:status=304
:status=400
:status=404
:status=500
accept-charset=
accept-encoding=gzip, deflate
accept-language=
accept-ranges=
accept=
access-control-allow-origin=
age=
allow=
authorization=
cache-control=
content-disposition=
content-encoding=
content-language=
content-length=
content-location=
content-range=
content-type=
cookie=
date=
etag=
expect=
expires=
from=
host=
if-match=
if-modified-since=
if-none-match=
if-range=
if-unmodified-since=
last-modified=
link=
location=
max-forwards=
proxy-authenticate=
proxy-authorization=
range=
referer=
refresh=
retry-after=
server=
set-cookie=
strict-transport-security=
transfer-encoding=
user-agent=
vary=
via=
www-authenticate=""".splitlines()
    )
]

# Appendix B: the lengths of the codes of 0..255 and of the end of string; the code is canonical, so they say it all.
_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b080606060505050606060606060607080f060c0a0d0607070707"
    "0707070707070707070707070707070707070807080d130d0e060f05060506050606060507070606060506070605050607070707070f0b0e0d1c141614141616161716171717"
    "171718171818161718171717171516171617171816151416161717151716161815161717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a18191315"
    "1a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)


class HpackError(ValueError):
    """The peer's header block makes no sense."""


def _codes() -> dict[tuple[int, int], int]:
    """(length, code) -> symbol."""
    codes, code, last = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code <<= length - last
        codes[length, code] = symbol
        code, last = code + 1, length
    return codes


_SYMBOLS = _codes()


@lru_cache(maxsize=4096)
def huffman(data: bytes) -> bytes:
    """Raises HpackError. What clients send over and over (paths, versions) is remembered."""
    out = bytearray()
    code = length = 0
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = _SYMBOLS.get((length, code))
            if symbol is not None:
                if symbol == 256:
                    raise HpackError("the end of a string inside of it")
                out.append(symbol)
                code = length = 0
    if length > 7 or code != (1 << length) - 1:
        raise HpackError("bad padding")
    return bytes(out)


class Decoder:
    def __init__(self) -> None:
        self._table: deque[Header] = deque()  # the newest in front
        self._size = 0
        self._size_max = TABLE_BYTES_MAX

    def decode(self, data: bytes) -> list[Header]:
        """Raises HpackError: the connection cannot go on."""
        headers: list[Header] = []
        at = total = 0
        try:
            while at < len(data):
                byte = data[at]
                if byte & 0x80:
                    index, at = _integer(data, at, 7)
                    header = self._entry(index)
                elif byte & 0xE0 == 0x20:
                    self._size_max, at = _integer(data, at, 5)
                    if self._size_max > TABLE_BYTES_MAX:
                        raise HpackError("the dynamic table is too large")
                    self._evict()
                    continue
                else:
                    indexed = byte & 0x40
                    index, at = _integer(data, at, 6 if indexed else 4)
                    if index:
                        name = self._entry(index)[0]
                    else:
                        name, at = _string(data, at)
                    value, at = _string(data, at)
                    header = name, value
                    if indexed:
                        self._add(header)
                headers.append(header)
                total += len(header[0]) + len(header[1])
                if len(headers) > HEADERS_MAX or total > HEADER_BYTES_MAX:
                    raise HpackError("too many headers")
        except IndexError:
            raise HpackError("the block is cut") from None
        return headers

    def _entry(self, index: int) -> Header:
        if index == 0:
            raise HpackError("index 0")
        if index <= len(_STATIC):
            return _STATIC[index - 1]
        return self._table[index - len(_STATIC) - 1]

    def _add(self, header: Header) -> None:
        self._table.appendleft(header)
        self._size += len(header[0]) + len(header[1]) + ENTRY_OVERHEAD_BYTES
        self._evict()

    def _evict(self) -> None:
        while self._size > self._size_max:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + ENTRY_OVERHEAD_BYTES


def _integer(data: bytes, at: int, bits: int) -> tuple[int, int]:
    limit = (1 << bits) - 1
    value = data[at] & limit
    at += 1
    if value < limit:
        return value, at
    for shift in range(0, 35, 7):
        byte = data[at]
        at += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise HpackError("an integer is too large")


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    packed = data[at] & 0x80
    length, at = _integer(data, at, 7)
    value = data[at : at + length]
    if len(value) < length:
        raise HpackError("a string is cut")
    return (huffman(value) if packed else value), at + length
