"""DNS messages (RFC 1035, EDNS0 of RFC 6891): questions are read by hand, answers are encoded with dnslib, TTLs counted down in place.

`parse` never raises but for ValueError: what it is given comes from anybody.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import dnslib

from fastkube.dns.zone import AAAA, CNAME, NEGATIVE_TTL_SECONDS, NS, PTR, SOA, SRV, TTL_SECONDS, TXT, A, Answer, Record

UDP_BYTES_MIN = 512  # what a client without EDNS takes
UDP_BYTES_MAX = 1232  # what fits every path without fragments (DNS flag day 2020); said in our OPT
NAME_BYTES_MAX = 255
RECORDS_MAX = 4096  # in a message, for the walker

QR, AA, TC, RD, RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
FORMERR, NOTIMP, REFUSED = 1, 4, 5
OPT = 41
IN = 1

_head = struct.Struct("!HHHHHH")


class Question(NamedTuple):
    """`name`: lower case, no closing dot. `raw`: the question's bytes as they came, to be echoed."""

    id: int
    flags: int
    name: str
    type: int
    cls: int
    raw: bytes
    edns: bool
    edns_version: int
    udp_bytes_max: int
    dnssec: bool

    @property
    def opcode(self) -> int:
        return self.flags >> 11 & 0xF


class Malformed(ValueError):
    """No DNS question. `id` is there when the header could be read: the client is told FORMERR."""

    def __init__(self, message: str, id_: int | None = None) -> None:
        super().__init__(message)
        self.id = id_


def parse(data: bytes) -> Question:
    """The one question of a query. Raises Malformed."""
    if len(data) < 12:
        raise Malformed("shorter than a header")
    id_, flags, questions, answers, authorities, additionals = _head.unpack_from(data)
    if flags & QR:
        raise Malformed("an answer, not a question")
    if questions != 1 or answers or authorities:
        raise Malformed("not exactly one question", id_)
    labels, at = [], 12
    try:
        while data[at]:
            length = data[at]
            if length > 63:
                raise Malformed("compression in a question", id_)
            label = data[at + 1 : at + 1 + length]
            if len(label) != length:
                raise Malformed("cut off", id_)
            labels.append(label)
            at += 1 + length
        at += 1
        type_, cls = struct.unpack_from("!HH", data, at)
        at += 4
        if at - 16 > NAME_BYTES_MAX:
            raise Malformed("name too long", id_)
        name = b".".join(labels).decode("latin-1").lower()
        edns, version, size, dnssec = _opt(data, at, additionals)
    except (IndexError, struct.error) as e:
        raise Malformed("cut off", id_) from e
    return Question(id_, flags, name, type_, cls, data[12:at], edns, version, size, dnssec)


def _opt(data: bytes, at: int, additionals: int) -> tuple[bool, int, int, bool]:
    """EDNS: (there, version, the client's UDP size, DNSSEC OK)."""
    for _ in range(min(additionals, 4)):
        at = _skip_name(data, at)
        type_, cls, ttl, length = struct.unpack_from("!HHIH", data, at)
        if type_ == OPT:
            return True, ttl >> 16 & 0xFF, max(UDP_BYTES_MIN, min(cls, UDP_BYTES_MAX)), bool(ttl & 0x8000)
        at += 10 + length
    return False, 0, UDP_BYTES_MIN, False


def _skip_name(data: bytes, at: int) -> int:
    while True:
        length = data[at]
        if length >= 0xC0:
            return at + 2
        at += 1 + length
        if not length:
            return at


OPT_RECORD = b"\0" + struct.pack("!HHIH", OPT, UDP_BYTES_MAX, 0, 0)


def encode(question: Question, answer: Answer, domain: str) -> bytes:
    """The whole message for an answer of the zone; the id and RD are the question's."""
    reply = dnslib.DNSRecord(dnslib.DNSHeader(id=question.id, qr=1, aa=1, rd=bool(question.flags & RD), ra=1, rcode=answer.rcode))
    reply.add_question(dnslib.DNSQuestion(_label(question.name), question.type, question.cls))
    for record in answer.records:
        reply.add_answer(_rr(record, domain))
    if not answer.records:
        reply.add_auth(_rr(Record(domain, SOA, None), domain, NEGATIVE_TTL_SECONDS))
    for record in answer.additional:
        reply.add_ar(_rr(record, domain))
    out = bytearray(reply.pack())
    out[12 : 12 + len(question.raw)] = question.raw  # the letters' case as it was asked
    if question.edns:
        out += OPT_RECORD
        out[10:12] = (len(answer.additional) + 1).to_bytes(2, "big")
    return bytes(out)


def _label(name: str) -> Any:
    return dnslib.DNSLabel([part.encode("latin-1") for part in name.split(".")] if name else [])


def _rr(record: Record, domain: str, ttl: int = TTL_SECONDS) -> Any:
    data = record.data
    if record.type == A:
        rdata: Any = dnslib.A(data)
    elif record.type == AAAA:
        rdata = dnslib.AAAA(data)
    elif record.type == SRV:
        rdata = dnslib.SRV(data[0], data[1], data[2], _label(data[3]))
    elif record.type == TXT:
        rdata = dnslib.TXT(data)
    elif record.type == SOA:
        rdata = dnslib.SOA(f"ns.dns.{domain}", f"hostmaster.{domain}", (1, 7200, 1800, 86400, NEGATIVE_TTL_SECONDS))
    else:
        rdata = {CNAME: dnslib.CNAME, NS: dnslib.NS, PTR: dnslib.PTR}[record.type](_label(data))
    return dnslib.RR(_label(record.name), record.type, IN, ttl, rdata)


def failure(question: Question, rcode: int) -> bytes:
    """An answer that is only a code. BADVERS (16) lies partly in the OPT record."""
    flags = QR | question.flags & (RD | 0x7800) | RA | rcode & 0xF
    out = _head.pack(question.id, flags, 1, 0, 0, 1 if question.edns else 0) + question.raw
    if question.edns:
        out += b"\0" + struct.pack("!HHIH", OPT, UDP_BYTES_MAX, rcode >> 4 << 24, 0)
    return out


def malformed(id_: int) -> bytes:
    return _head.pack(id_, QR | FORMERR, 0, 0, 0, 0)


def truncated(question: Question, message: bytes) -> bytes:
    """Nothing but the question, and TC: ask again over TCP."""
    flags = int.from_bytes(message[2:4], "big") | TC
    return _head.pack(question.id, flags, 1, 0, 0, 1 if question.edns else 0) + question.raw + (OPT_RECORD if question.edns else b"")


def ttl_offsets(message: bytes) -> tuple[list[int], int]:
    """Where the TTLs of a message's records lie (not OPT's), and the smallest of them (0 when there are none). Raises ValueError."""
    try:
        _, _, questions, *counts = _head.unpack_from(message)
        at = 12
        for _ in range(questions):
            at = _skip_name(message, at) + 4
        if sum(counts) > RECORDS_MAX:
            raise ValueError("too many records")
        offsets: list[int] = []
        smallest: int | None = None
        for _ in range(sum(counts)):
            at = _skip_name(message, at)
            type_, _, ttl, length = struct.unpack_from("!HHIH", message, at)
            if type_ != OPT:
                offsets.append(at + 4)
                smallest = ttl if smallest is None else min(smallest, ttl)
            at += 10 + length
        if at > len(message):
            raise ValueError("cut off")
        return offsets, smallest or 0
    except (IndexError, struct.error) as e:
        raise ValueError("cut off") from e


def count_down(message: bytes, offsets: Sequence[int], seconds: int) -> bytearray:
    """The message with every TTL lowered by `seconds`, at least 0."""
    out = bytearray(message)
    for at in offsets:
        ttl = int.from_bytes(out[at : at + 4], "big")
        out[at : at + 4] = max(0, ttl - seconds).to_bytes(4, "big")
    return out


def answers_of(message: bytes) -> list[tuple[int, bytes]]:
    """(type, whole record) pairs of the answer section, names decompressed; for joining to a CNAME of ours. Raises ValueError."""
    try:
        parsed = dnslib.DNSRecord.parse(message)
    except Exception as e:
        raise ValueError(str(e)) from e
    out = []
    for rr in parsed.rr:
        buffer = dnslib.DNSBuffer()
        rr.pack(buffer)
        out.append((rr.rtype, bytes(buffer.data)))
    return out


def with_answers(message: bytes, question: Question, more: Sequence[tuple[int, bytes]]) -> bytes:
    """`message` (answers only, no authority; perhaps an OPT) with further whole records in its answer section."""
    opt = OPT_RECORD if question.edns else b""
    body = message[: len(message) - len(opt)] if opt else message
    id_, flags, questions, answers, authorities, additionals = _head.unpack_from(body)
    return _head.pack(id_, flags, questions, answers + len(more), authorities, additionals) + body[12:] + b"".join(r for _, r in more) + opt
