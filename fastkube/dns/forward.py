"""Asking upstream resolvers for what is not ours: one question at a time per name, cached within bounds, never in a circle.

Laws:
- every question upstream goes out under a fresh random id from a fresh socket (a forged answer must guess both), and only an answer with
  that id and the very question is taken;
- equal questions that are under way share one answer; an answer is kept no longer than its smallest TTL, and CACHE_SECONDS_MAX;
- our own address is no upstream; a resolver that sends our questions back to us (found by a probe that no one else could ask) is dropped.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastkube.dns.packet import OPT_RECORD, RD, TC, UDP_BYTES_MAX, Question, count_down, ttl_offsets
from fastkube.runtime import clock, logs

CACHE_ENTRIES_MAX = 10_000
CACHE_ENTRY_BYTES_MAX = 8192
CACHE_SECONDS_MAX = 30
NEGATIVE_SECONDS_MAX = 5
QUESTIONS_MAX = 1000  # under way; more are refused with SERVFAIL
TRY_SECONDS_MAX = 2.0
UPSTREAMS_MAX = 3  # as glibc
RESOLV_CONF_BYTES_MAX = 65536

HINFO = 13

log = logs.get("dns.forward")


class Upstream(NamedTuple):
    host: str
    port: int = 53


class Entry(NamedTuple):
    """`message` without the first two bytes (the id)."""

    message: bytes
    offsets: list[int]
    stored_at: float
    expires_at: float


def upstreams_of(resolv_conf: Path, own: Iterable[str]) -> list[Upstream]:
    """The `nameserver` lines of a resolv.conf but for our own addresses; empty when there is no such file."""
    try:
        text = resolv_conf.read_text(errors="replace")[:RESOLV_CONF_BYTES_MAX]
    except OSError as e:
        log.warning("no resolv.conf, only the cluster's names are answered", path=str(resolv_conf), error=str(e))
        return []
    own = set(own)
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and words[1] not in own:
            found.append(Upstream(words[1]))
    return found[:UPSTREAMS_MAX]


class Forwarder:
    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self.upstreams = list(upstreams)
        self.cache: OrderedDict[tuple[str, int, bool], Entry] = OrderedDict()
        self.probe_name = f"{secrets.token_hex(8)}.loop.fastkube.invalid"
        self._under_way: dict[tuple[str, int, bool], asyncio.Future[bytes | None]] = {}

    def cached(self, question: Question) -> bytes | None:
        """The answer from the cache, ready to send."""
        key = (question.name, question.type, question.dnssec)
        entry = self.cache.get(key)
        if entry is None:
            return None
        now = clock.monotonic()
        if now >= entry.expires_at:
            del self.cache[key]
            return None
        self.cache.move_to_end(key)
        message = count_down(entry.message, entry.offsets, int(now - entry.stored_at))
        return finished(question, bytes(message))

    async def ask(self, question: Question) -> bytes | None:
        """The upstream's answer, ready to send; None when there is none to be had (SERVFAIL)."""
        message = self.cached(question)
        if message is not None:
            return message
        key = (question.name, question.type, question.dnssec)
        waiting = self._under_way.get(key)
        if waiting is None:
            if len(self._under_way) >= QUESTIONS_MAX or not self.upstreams:
                return None
            waiting = self._under_way[key] = asyncio.ensure_future(self._resolve(question))
            waiting.add_done_callback(lambda _: self._under_way.pop(key, None))
        fresh = await asyncio.shield(waiting)
        return finished(question, fresh) if fresh is not None else None

    async def _resolve(self, question: Question) -> bytes | None:
        for upstream in list(self.upstreams):
            try:
                message = await asyncio.wait_for(_exchange(upstream, question), TRY_SECONDS_MAX)
                if message[3] & 0xF in (2, 5) and upstream != self.upstreams[-1]:  # SERVFAIL, REFUSED: another may know
                    continue
                self._keep(question, message)
                return message
            except (OSError, TimeoutError, ValueError) as e:
                log.debug("upstream failed", upstream=upstream.host, name=question.name, error=repr(e))
        return None

    def _keep(self, question: Question, message: bytes) -> None:
        offsets, ttl = ttl_offsets(message)
        rcode, answers = message[3] & 0xF, int.from_bytes(message[6:8], "big")
        if rcode not in (0, 3) or len(message) > CACHE_ENTRY_BYTES_MAX or int.from_bytes(message[2:4], "big") & TC:
            return
        seconds = min(ttl, CACHE_SECONDS_MAX if answers and rcode == 0 else NEGATIVE_SECONDS_MAX)
        if seconds:
            now = clock.monotonic()
            self.cache[question.name, question.type, question.dnssec] = Entry(message, offsets, now, now + seconds)
            while len(self.cache) > CACHE_ENTRIES_MAX:
                self.cache.popitem(last=False)

    async def probe(self) -> None:
        """Ask every upstream for a name that nobody knows; `looped` is called when that question comes back to us."""
        question = Question(0, RD, self.probe_name, HINFO, 1, raw_question(self.probe_name, HINFO), False, 0, 512, False)
        for upstream in list(self.upstreams):
            try:
                await asyncio.wait_for(_exchange(upstream, question), TRY_SECONDS_MAX)
            except (OSError, TimeoutError, ValueError):
                continue

    def looped(self) -> None:
        if self.upstreams:
            log.error("the upstream resolver asks us: forwarding is off, only the cluster's names are answered", upstreams=[u.host for u in self.upstreams])
            self.upstreams = []


def raw_question(name: str, type_: int) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return labels + b"\0" + type_.to_bytes(2, "big") + b"\0\1"


def finished(question: Question, message: bytes) -> bytes:
    """An upstream's message with this question's id and letters; its OPT goes when the client has none."""
    out = bytearray(message)
    out[:2] = question.id.to_bytes(2, "big")
    out[12 : 12 + len(question.raw)] = question.raw
    if not question.edns and out[-len(OPT_RECORD) :][:3] == b"\0\0\x29" and out[-2:] == b"\0\0":
        out[10:12] = (int.from_bytes(out[10:12], "big") - 1).to_bytes(2, "big")
        del out[-len(OPT_RECORD) :]
    return bytes(out)


def _query(question: Question, id_: int) -> bytes:
    opt = b"\0" + b"\0\x29" + UDP_BYTES_MAX.to_bytes(2, "big") + (b"\0\0\x80\0" if question.dnssec else b"\0\0\0\0") + b"\0\0"
    return id_.to_bytes(2, "big") + RD.to_bytes(2, "big") + b"\0\1\0\0\0\0\0\1" + question.raw + opt


async def _exchange(upstream: Upstream, question: Question) -> bytes:
    """One question to one upstream, over TCP when the answer does not fit. OSError, ValueError."""
    query = _query(question, secrets.randbelow(65536))
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    class Waiter(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            if not answer.done() and _belongs(query, question, data):
                answer.set_result(data)

        def error_received(self, exc: Exception) -> None:
            if not answer.done():
                answer.set_exception(exc)

    family = socket.AF_INET6 if ":" in upstream.host else socket.AF_INET
    transport, _ = await loop.create_datagram_endpoint(Waiter, remote_addr=(upstream.host, upstream.port), family=family)
    try:
        transport.sendto(query)
        message = await answer
    finally:
        transport.close()
    if int.from_bytes(message[2:4], "big") & TC:
        message = await _exchange_tcp(upstream, question, query)
    ttl_offsets(message)  # well-formed, or ValueError
    return message


async def _exchange_tcp(upstream: Upstream, question: Question, query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(upstream.host, upstream.port)
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        message = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    except asyncio.IncompleteReadError as e:
        raise ConnectionResetError("cut off") from e
    finally:
        writer.close()
    if not _belongs(query, question, message):
        raise ValueError("the answer is to another question")
    return message


def _belongs(query: bytes, question: Question, message: bytes) -> bool:
    end = 12 + len(question.raw)
    return len(message) >= end and message[:2] == query[:2] and bool(message[2] & 0x80) and message[12:end].lower() == question.raw.lower()
