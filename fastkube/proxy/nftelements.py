"""Element changes straight over netlink (linux/netfilter/nf_tables.h): what nine of ten changes are, without starting nft for it.

One batch is one transaction of the kernel, as nft's own. Keys and values are laid out as the sets' types say: every field padded to four
bytes, numbers of packets in network order, class ids in the machine's.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import threading
from collections.abc import Iterable, Sequence

from fastkube.proxy.layout import TABLE, Address, ElementKey, Id, Lane, Value
from fastkube.proxy.netlink import F_CREATE, Socket, attribute, attributes, body, nested

SUBSYSTEM = 10
GROUP = 7  # NFNLGRP_NFTABLES
DELETE_TABLE, TABLE_NAME = 2, 1
GET_CHAIN, GET_SET, NEW_ELEMENTS, DELETE_ELEMENTS = 4, 10, 12, 14
CHAIN_NAME, SET_NAME, SET_FLAGS, SET_IS_MAP = 3, 2, 3, 8
LIST_TABLE, LIST_SET, LIST_ELEMENTS, ELEMENT = 1, 2, 3, 1
KEY, DATA = 1, 2
VALUE, VERDICT, VERDICT_CODE, VERDICT_CHAIN = 1, 2, 1, 2
GOTO = (-4).to_bytes(4, "big", signed=True)
FAMILIES = {"ip": 2, "ip6": 10}
PROTOCOLS = {"tcp": b"\x06\0\0\0", "udp": b"\x11\0\0\0", "sctp": b"\x84\0\0\0"}
ELEMENTS_PER_MESSAGE_MAX = 400  # an attribute holds 64 KiB
ELEMENTS_MAX = 2000  # in a batch; more go through nft, which is better at many
CLONE_NEWNET = 0x40000000


def address_bytes(ip: str) -> bytes:
    return ipaddress.ip_address(ip).packed


def key_bytes(key: Sequence[str | int]) -> bytes:
    return b"".join(map(_field, key))


def _field(part: str | int) -> bytes:
    if isinstance(part, str):
        return PROTOCOLS.get(part) or address_bytes(part)
    if isinstance(part, Id):
        return part.to_bytes(4, "little")
    return part.to_bytes(2, "big") + b"\0\0"


def value_attribute(value: Value) -> bytes:
    """The DATA attribute of a map's element; nothing for a set's."""
    if isinstance(value, Lane):
        chain = attribute(VERDICT_CHAIN, value.name.encode() + b"\0")
        return nested(DATA, nested(VERDICT, attribute(VERDICT_CODE, GOTO), chain))
    if isinstance(value, Address):
        return nested(DATA, attribute(VALUE, address_bytes(value.ip) + value.port.to_bytes(2, "big") + b"\0\0"))
    return nested(DATA, attribute(VALUE, value.to_bytes(4, "little"))) if isinstance(value, Id) else b""


def messages(family: str, deletes: Iterable[ElementKey], adds: Iterable[tuple[ElementKey, Value]]) -> list[tuple[int, int, bytes]]:
    """The (type, flags, payload) messages of a batch: deletes first, as a changed element is deleted and added."""
    out = []
    for type_, flags, items in (
        (DELETE_ELEMENTS, 0, [(name, nested(KEY, attribute(VALUE, key_bytes(key)))) for name, key in deletes]),
        (NEW_ELEMENTS, F_CREATE, [(name, nested(KEY, attribute(VALUE, key_bytes(key))) + value_attribute(value)) for (name, key), value in adds]),
    ):
        by_set: dict[str, list[bytes]] = {}
        for name, item in items:
            by_set.setdefault(name, []).append(nested(ELEMENT, item))
        for name, elements in by_set.items():
            head = attribute(LIST_TABLE, TABLE.encode() + b"\0") + attribute(LIST_SET, name.encode() + b"\0")
            for i in range(0, len(elements), ELEMENTS_PER_MESSAGE_MAX):
                payload = head + nested(LIST_ELEMENTS, *elements[i : i + ELEMENTS_PER_MESSAGE_MAX])
                out.append((type_, flags, body(FAMILIES[family], payload)))
    return out


def present(connection: Socket, family: str) -> set[str]:
    """What our table holds, as `map NAME`, `set NAME`, `chain NAME`; empty when there is no table. Anonymous sets are left out."""
    out = set()
    for type_, name_attribute in ((GET_CHAIN, CHAIN_NAME), (GET_SET, SET_NAME)):
        for payload in connection.dump(SUBSYSTEM << 8 | type_, body(FAMILIES[family], b"")):
            found = dict(attributes(payload))
            name = _text(found[name_attribute])
            if _text(found[1]) == TABLE and not name.startswith("__"):
                is_map = type_ == GET_SET and int.from_bytes(found.get(SET_FLAGS, b"\0"), "big") & SET_IS_MAP
                out.add(f"{'chain' if type_ == GET_CHAIN else 'map' if is_map else 'set'} {name}")
    return out


def _text(data: memoryview) -> str:
    return bytes(data).rstrip(b"\0").decode()


def table_deleted(connection: Socket) -> bool:
    """Whether the kernel tells, on a joined socket, of a deleted table of ours; also when it had more to tell than the socket holds."""
    found = False
    try:
        for kind, payload in connection.pending():
            found = found or (kind == SUBSYSTEM << 8 | DELETE_TABLE and _text(dict(attributes(payload))[TABLE_NAME]) == TABLE)
    except OSError:  # ENOBUFS
        return True
    return found


def socket_in(netns: str | None) -> Socket:
    """A netfilter socket of the network namespace at that path (None: ours). A socket stays where it was made; a thread is lent for that."""
    if netns is None:
        return Socket()
    made: list[Socket | OSError] = []

    def enter() -> None:
        try:
            fd = os.open(netns, os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)
            made.append(Socket())
        except OSError as e:
            made.append(e)

    thread = threading.Thread(target=enter, name="setns")
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]
