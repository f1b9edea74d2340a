"""Forgets tracked UDP flows whose way is no longer right (linux/netfilter/nfnetlink_conntrack.h)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from typing import NamedTuple

from fastkube.proxy.diff import Reach
from fastkube.proxy.model import ANY_ADDRESS, Frontend, family_of
from fastkube.proxy.netlink import Socket, attribute, attributes, body

SUBSYSTEM = 1
GET, DELETE = 1, 2
TUPLE_ORIG, TUPLE_REPLY, ZONE = 1, 2, 18
TUPLE_IP, TUPLE_PROTO = 1, 2
SRC_V4, DST_V4, SRC_V6, DST_V6 = 1, 2, 3, 4
PROTO_NUM, SRC_PORT, DST_PORT = 1, 2, 3
UDP = 17


class Flow(NamedTuple):
    """A tracked UDP flow: where the client sent to, who answers, and the attributes that name it to the kernel."""

    destination: tuple[str, int]
    answers: tuple[str, int]
    name: bytes


def is_stale(flow: Flow, reach: Reach) -> bool:
    """Whether `flow` goes where the frontend it was sent to no longer leads. Node ports: translated flows only, as others may use the same number."""
    ip, port = flow.destination
    frontend = Frontend(ip, "udp", port)
    if frontend in reach:
        return flow.answers not in reach[frontend]
    at_node = Frontend(ANY_ADDRESS[family_of(ip)], "udp", port)
    return at_node in reach and flow.answers != flow.destination and flow.answers not in reach[at_node]


def forget(reach: Reach) -> int:
    """Delete the stale flows among those to the frontends in `reach`; returns how many. Blocks: netlink, a dump of the table."""
    if not reach:
        return 0
    families = {socket.AF_INET6 if ":" in f.ip else socket.AF_INET for f in reach}
    connection, count = Socket(), 0
    try:
        for family in families:
            for flow in [f for f in _flows(connection, family) if is_stale(f, reach)]:
                try:
                    connection.request(SUBSYSTEM << 8 | DELETE, body(family, flow.name))
                    count += 1
                except FileNotFoundError:  # it ended by itself
                    pass
    finally:
        connection.close()
    return count


def _flows(connection: Socket, family: int) -> Iterator[Flow]:
    for payload in connection.dump(SUBSYSTEM << 8 | GET, body(family, b"")):
        found = dict(attributes(payload))
        original, reply = _tuple(found[TUPLE_ORIG]), _tuple(found[TUPLE_REPLY])
        if original and reply:
            name = attribute(TUPLE_ORIG | 0x8000, bytes(found[TUPLE_ORIG]))
            if ZONE in found:
                name += attribute(ZONE, bytes(found[ZONE]))
            yield Flow(original[1], reply[0], name)


def _tuple(data: memoryview) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """Source and destination of a UDP tuple; None for other protocols."""
    parts = dict(attributes(data))
    proto = dict(attributes(parts[TUPLE_PROTO]))
    if proto[PROTO_NUM][0] != UDP:
        return None
    ip = dict(attributes(parts[TUPLE_IP]))
    source, destination = (ip[SRC_V4], ip[DST_V4]) if SRC_V4 in ip else (ip[SRC_V6], ip[DST_V6])
    return (_address(source), int.from_bytes(proto[SRC_PORT], "big")), (_address(destination), int.from_bytes(proto[DST_PORT], "big"))


def _address(packed: memoryview) -> str:
    return str(ipaddress.ip_address(bytes(packed)))
