"""Messages: what we read and write is what dnslib reads and writes; what is no message harms nothing."""

from __future__ import annotations

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.dns import packet
from fastkube.dns.zone import AAAA, NOERROR, NXDOMAIN, SRV, A, Answer, Record

label = st.text(st.characters(min_codepoint=45, max_codepoint=122, exclude_characters="."), min_size=1, max_size=20)
names = st.lists(label, min_size=1, max_size=6).map(".".join)


def query(name: str, type_: int = A, edns: int = 0, **header: int) -> bytes:
    record = dnslib.DNSRecord(dnslib.DNSHeader(id=4711, rd=1, **header))
    record.add_question(dnslib.DNSQuestion(name, type_))
    if edns:
        record.add_ar(dnslib.EDNS0(udp_len=edns))
    return record.pack()


@given(names, st.sampled_from([A, AAAA, SRV, 16, 255, 65]), st.sampled_from([0, 400, 1232, 65535]))
def test_questions_are_read(name: str, type_: int, edns: int) -> None:
    question = packet.parse(query(name, type_, edns))
    assert (question.name, question.type, question.id, question.edns) == (name.lower(), type_, 4711, bool(edns))
    assert question.udp_bytes_max == (max(512, min(edns, 1232)) if edns else 512)


@given(st.binary(max_size=80))
def test_noise_is_malformed_at_worst(data: bytes) -> None:
    try:
        packet.parse(data)
    except packet.Malformed:
        pass
    try:
        packet.ttl_offsets(data)
    except ValueError:
        pass


@given(st.binary(max_size=60), st.integers(0, 90))
def test_cut_and_bent_questions_are_malformed_at_worst(noise: bytes, at: int) -> None:
    whole = query("www.example.com", edns=1232)
    for data in (whole[:at], whole[:at] + noise, whole[:at] + noise + whole[at:]):
        try:
            packet.parse(data)
        except packet.Malformed:
            pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 11,
        query("x", qr=1),
        b"\0\1\0\0\0\2\0\0\0\0\0\0",
        b"\0\1\0\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",
        b"\0\1\0\0\0\1\0\0\0\0\0\0" + b"\x3f" + b"a" * 62,
    ],
)
def test_what_is_no_question(data: bytes) -> None:
    with pytest.raises(packet.Malformed):
        packet.parse(data)


def test_answers_echo_letters_and_id() -> None:
    question = packet.parse(query("WEB.Default.svc.CLUSTER.local", edns=1232))
    reply = dnslib.DNSRecord.parse(packet.encode(question, Answer(NOERROR, (Record(question.name, A, "10.96.0.1"),)), "cluster.local"))
    assert str(reply.q.qname) == "WEB.Default.svc.CLUSTER.local."
    assert (reply.header.id, reply.header.aa, reply.header.rd, reply.header.ra) == (4711, 1, 1, 1)
    assert [str(rr.rdata) for rr in reply.rr] == ["10.96.0.1"] and reply.rr[0].ttl == 30
    assert reply.ar[0].rtype == packet.OPT


def test_denials_carry_the_soa() -> None:
    question = packet.parse(query("nope.cluster.local"))
    reply = dnslib.DNSRecord.parse(packet.encode(question, Answer(NXDOMAIN), "cluster.local"))
    assert reply.header.rcode == NXDOMAIN and str(reply.auth[0].rname) == "cluster.local." and reply.auth[0].ttl == 5


def test_ttls_count_down() -> None:
    record = dnslib.DNSRecord.question("example.com").reply()
    record.add_answer(*dnslib.RR.fromZone("example.com 60 A 192.0.2.1\nexample.com 20 A 192.0.2.2"))
    record.add_ar(dnslib.EDNS0(udp_len=1232))
    message = record.pack()
    offsets, smallest = packet.ttl_offsets(message)
    assert smallest == 20 and len(offsets) == 2
    later = dnslib.DNSRecord.parse(bytes(packet.count_down(message, offsets, 30)))
    assert [rr.ttl for rr in later.rr] == [30, 0]


def test_truncation_says_so() -> None:
    question = packet.parse(query("many.cluster.local", edns=512))
    records = tuple(Record(question.name, A, f"10.244.0.{i}") for i in range(100))
    reply = dnslib.DNSRecord.parse(packet.truncated(question, packet.encode(question, Answer(NOERROR, records), "cluster.local")))
    assert (reply.header.tc, reply.header.rcode, len(reply.rr), len(reply.ar)) == (1, 0, 0, 1)


def test_failures() -> None:
    question = packet.parse(query("x", edns=1232))
    reply = dnslib.DNSRecord.parse(packet.failure(question, 16))  # BADVERS: half in the header, half in the OPT record
    assert reply.header.rcode == 0 and reply.ar[0].ttl >> 24 == 1
