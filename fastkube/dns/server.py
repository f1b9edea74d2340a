"""Answers DNS over UDP and TCP from the zone, forwards the rest.

The fast path: an answer of the zone is encoded once per question and kept (bounded; dropped whenever the zone changes); the next client gets
the same bytes with its own id and letters. Several addresses of one name are kept in each rotation, so that clients spread over them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter

from fastkube.dns import packet
from fastkube.dns.forward import HINFO, Forwarder
from fastkube.dns.packet import Malformed, Question
from fastkube.dns.zone import SERVFAIL, Answer, Zone
from fastkube.runtime import logs

ENCODED_ENTRIES_MAX = 10_000
ROTATIONS_MAX = 16
FORWARDS_MAX = 2000  # clients waiting for an upstream; more get SERVFAIL
TCP_CONNECTIONS_MAX = 500
TCP_IDLE_SECONDS_MAX = 10.0
BADVERS = 16

log = logs.get("dns.server")

REQUESTS = Counter("fastkube_dns_requests_total", "Questions, by who answered", ["by"])

Send = Callable[[bytes], None]


class Encoded:
    """The messages of one question's answer, taken in turn."""

    __slots__ = ("messages", "next")

    def __init__(self, messages: list[bytes]) -> None:
        self.messages = messages
        self.next = 0


class Responder:
    """From a question's bytes to an answer's; `zone` may change at any time."""

    def __init__(self, zone: Zone, forwarder: Forwarder) -> None:
        self.zone = zone
        self.forwarder = forwarder
        self._encoded: dict[tuple[str, int, bool], Encoded] = {}
        self._version = -1
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_zone, self._by_upstream, self._by_refusal = (REQUESTS.labels(by) for by in ("zone", "upstream", "refusal"))

    def handle(self, data: bytes, send: Send, udp: bool) -> None:
        """Answer through `send`, now or when an upstream has answered; what is no question gets FORMERR or nothing."""
        try:
            question = packet.parse(data)
        except Malformed as e:
            if e.id is not None:
                send(packet.malformed(e.id))
            return
        refusal = self._refusal(question)
        if refusal is not None:
            self._by_refusal.inc()
            send(packet.failure(question, refusal))
            return
        message = self._from_zone(question)
        if message is None:
            message = self.forwarder.cached(question)
        if message is not None:
            send(fit(question, message) if udp else message)
        elif question.name == self.forwarder.probe_name and question.type == HINFO:
            self.forwarder.looped()
            send(packet.failure(question, SERVFAIL))
        elif len(self._tasks) >= FORWARDS_MAX:
            send(packet.failure(question, SERVFAIL))
        else:
            task = asyncio.get_running_loop().create_task(self._forward(question, send, udp), name="dns/forward")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _refusal(self, question: Question) -> int | None:
        if question.opcode != 0:
            return packet.NOTIMP
        if question.edns_version != 0:
            return BADVERS
        if question.cls != packet.IN or question.type in (251, 252):  # zone transfers
            return packet.REFUSED
        return None

    def _from_zone(self, question: Question) -> bytes | None:
        """The zone's answer; None when another must be asked (also for where an alias leads)."""
        if self._version != self.zone.version:
            self._version = self.zone.version
            self._encoded.clear()
        key = (question.name, question.type, question.edns)
        encoded = self._encoded.get(key)
        if encoded is None:
            answer = self.zone.answer(question.name, question.type)
            if answer is None or answer.chase:
                return None
            encoded = Encoded([packet.encode(question, turn, self.zone.domain) for turn in rotations(answer)])
            if len(self._encoded) >= ENCODED_ENTRIES_MAX:
                self._encoded.clear()
            self._encoded[key] = encoded
        self._by_zone.inc()
        messages = encoded.messages
        message = messages[encoded.next]
        if len(messages) > 1:
            encoded.next = (encoded.next + 1) % len(messages)
        flags = (message[2] & ~1) | (question.flags >> 8 & 1)  # RD as asked
        return b"".join((question.id.to_bytes(2, "big"), bytes((flags,)), message[3:12], question.raw, message[12 + len(question.raw) :]))

    async def _forward(self, question: Question, send: Send, udp: bool) -> None:
        self._by_upstream.inc()
        answer = self.zone.answer(question.name, question.type)
        if answer is None:
            message = await self.forwarder.ask(question)
        else:
            message = await self._chase(question, answer)
        if message is None:
            message = packet.failure(question, SERVFAIL)
        send(fit(question, message) if udp else message)

    async def _chase(self, question: Question, answer: Answer) -> bytes:
        """Our alias, and what the upstream says of its target; the alias alone when it says nothing."""
        ours = packet.encode(question, answer, self.zone.domain)
        target = question._replace(name=answer.chase, raw=_raw(answer.chase, question.type))
        theirs = await self.forwarder.ask(target)
        if theirs is None:
            return ours
        try:
            return packet.with_answers(ours, question, packet.answers_of(theirs))
        except ValueError:
            return ours

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _raw(name: str, type_: int) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode("latin-1") for part in name.split("."))
    return labels + b"\0" + type_.to_bytes(2, "big") + b"\0\1"


def rotations(answer: Answer) -> list[Answer]:
    records = answer.records
    if len(records) < 2 or any(r.type != records[0].type for r in records):
        return [answer]
    return [answer._replace(records=records[i:] + records[:i]) for i in range(min(len(records), ROTATIONS_MAX))]


def fit(question: Question, message: bytes) -> bytes:
    """The message, or the word that it does not fit into the client's datagram."""
    return message if len(message) <= question.udp_bytes_max else packet.truncated(question, message)


class Udp(asyncio.DatagramProtocol):
    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        transport = self.transport

        def send(message: bytes) -> None:
            if not transport.is_closing():
                transport.sendto(message, addr)

        self.responder.handle(data, send, True)

    def error_received(self, exc: Exception) -> None:
        log.debug("a client is gone", error=str(exc))


class Server:
    """UDP and TCP on one address."""

    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self._udp: list[Any] = []
        self._tcp: list[asyncio.AbstractServer] = []
        self._connections = 0

    async def listen(self, host: str, port: int) -> int:
        """Takes questions on host:port (0: a free one, the same for both) -> the port. OSError."""
        loop = asyncio.get_running_loop()
        tcp = await asyncio.start_server(self._serve, host, port, backlog=256)
        self._tcp.append(tcp)
        port = tcp.sockets[0].getsockname()[1]
        transport, _ = await loop.create_datagram_endpoint(lambda: Udp(self.responder), local_addr=(host, port))
        self._udp.append(transport)
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= TCP_CONNECTIONS_MAX:
            writer.close()
            return
        self._connections += 1

        def send(message: bytes) -> None:
            if not writer.is_closing():
                writer.write(len(message).to_bytes(2, "big") + message)

        try:
            while True:
                async with asyncio.timeout(TCP_IDLE_SECONDS_MAX):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(length)
                self.responder.handle(data, send, False)
                async with asyncio.timeout(TCP_IDLE_SECONDS_MAX):
                    await writer.drain()
        except (asyncio.IncompleteReadError, OSError, TimeoutError):
            pass
        finally:
            self._connections -= 1
            writer.close()

    async def close(self) -> None:
        for transport in self._udp:
            transport.close()
        for tcp in self._tcp:
            tcp.close()
        await self.responder.close()
