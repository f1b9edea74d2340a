"""gzip for answers worth it, in a thread: the loop goes on serving, and memory is bounded by one piece."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

from fastkube.http.message import Pieces, Request, Response

COMPRESS_BYTES_MIN = 128 * 1024  # as upstream: smaller answers cost more than they save
PIECE_BYTES_MIN = 256 * 1024  # given to the thread at a time
LEVEL = 1
THREADS_MAX = 2

_GZIP = 16 + zlib.MAX_WBITS
_pool = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="gzip")


def worth(request: Request, response: Response) -> bool:
    """Whether the client takes gzip and the answer is large."""
    body = response.body
    if not isinstance(body, (bytes, Pieces)) or len(body) < COMPRESS_BYTES_MIN:
        return False
    accepted = request.headers.get("accept-encoding")
    return (
        accepted is not None
        and "gzip" in accepted
        and "gzip;q=0" not in accepted.replace(" ", "")
        and not any(n == "Content-Encoding" for n, _ in response.headers)
    )


def gzipped(response: Response) -> Response:
    """The same answer, compressed while it is written."""
    body = response.body
    pieces = iter((body,)) if isinstance(body, bytes) else body.pieces()  # type: ignore[union-attr]
    headers = (*response.headers, ("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding"))
    return Response(response.status, _compress(pieces), response.content_type, headers, response.raw_headers)


async def _compress(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)
    for part in _gathered(pieces):
        out = await loop.run_in_executor(_pool, compressor.compress, part)
        if out:
            yield out
    yield compressor.flush()


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in parts of about PIECE_BYTES_MIN."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        for start in range(0, len(piece), PIECE_BYTES_MIN):
            part = piece[start : start + PIECE_BYTES_MIN]
            held.append(part)
            size += len(part)
            if size >= PIECE_BYTES_MIN:
                yield b"".join(held)
                held, size = [], 0
    if held:
        yield b"".join(held)
