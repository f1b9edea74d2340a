"""Netlink for the proxy's hot paths: messages encoded and decoded by hand (linux/netlink.h, linux/netfilter/nfnetlink.h).

A message is header, family, attributes; an attribute is length, type, payload padded to four bytes; nested ones hold attributes again.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 12, 16
NLMSG_ERROR, NLMSG_DONE = 2, 3
F_REQUEST, F_ACK, F_DUMP = 0x1, 0x4, 0x300
F_CREATE = 0x400
NESTED = 0x8000
TYPE_MASK = 0x3FFF
BATCH_BEGIN, BATCH_END = 16, 17
RECEIVE_BYTES = 1 << 18
PIPELINED_MAX = 200  # requests sent before their acknowledgements are read
SOCKET_BUFFER_BYTES = 8 << 20
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SOL_NETLINK, ADD_MEMBERSHIP = 270, 1

_header = struct.Struct("=IHHII")
_attribute = struct.Struct("=HH")


def attribute(type_: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return _attribute.pack(length, type_) + payload + b"\0" * (-length & 3)


def nested(type_: int, *attributes: bytes) -> bytes:
    return attribute(type_ | NESTED, b"".join(attributes))


def attributes(data: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, payload) of each attribute in `data`."""
    view = memoryview(data)
    at = 0
    while at + 4 <= len(view):
        length, type_ = _attribute.unpack_from(view, at)
        if length < 4:
            return
        yield type_ & TYPE_MASK, view[at + 4 : at + length]
        at += (length + 3) & ~3


def body(family: int, payload: bytes, res_id: int = 0) -> bytes:
    """nfgenmsg and attributes."""
    return struct.pack("=BBH", family, 0, socket.htons(res_id)) + payload


class Socket:
    """A netlink socket of the calling thread's network namespace. Failures are OSErrors with the kernel's errno."""

    def __init__(self, protocol: int = NETLINK_NETFILTER) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
            self._socket.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def join(self, group: int) -> None:
        """Hear what the kernel tells this multicast group."""
        self._socket.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)

    def pending(self) -> Iterator[tuple[int, memoryview]]:
        """(type, payload after nfgenmsg) of what has been heard so far. OSError ENOBUFS when some of it was lost."""
        while True:
            try:
                data = self._socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            for _, kind, payload in _messages(data):
                yield kind, payload[4:]

    def request(self, type_: int, payload: bytes) -> None:
        """Send one message and wait for its acknowledgement."""
        self._sequence += 1
        self._socket.send(_header.pack(16 + len(payload), type_, F_REQUEST | F_ACK, self._sequence, 0) + payload)
        for _ in self._answers(self._sequence):
            pass

    def requests(self, messages: Iterable[tuple[int, int, bytes]]) -> list[int]:
        """(type, flags, payload) messages one after the other, many under way at once -> the errno of each, 0 for those that succeeded."""
        out: list[int] = []
        waiting = list(messages)
        for start in range(0, len(waiting), PIPELINED_MAX):
            part = waiting[start : start + PIPELINED_MAX]
            first = self._sequence + 1
            self._socket.send(b"".join(self._framed(type_, F_REQUEST | F_ACK | flags, payload) for type_, flags, payload in part))
            errors: dict[int, int] = {}
            while len(errors) < len(part):
                for sequence, kind, payload_view in _messages(self._socket.recv(RECEIVE_BYTES)):
                    if kind == NLMSG_ERROR and sequence >= first:
                        errors[sequence] = -struct.unpack_from("=i", payload_view)[0]
            out += [errors[first + i] for i in range(len(part))]
        return out

    def dump(self, type_: int, payload: bytes) -> Iterator[memoryview]:
        """The payloads (after nfgenmsg, or whatever four bytes a protocol opens with) of all answers."""
        self._sequence += 1
        self._socket.send(_header.pack(16 + len(payload), type_, F_REQUEST | F_DUMP, self._sequence, 0) + payload)
        yield from self._answers(self._sequence)

    def batch(self, subsystem: int, messages: Sequence[tuple[int, int, bytes]]) -> None:
        """(type, flags, payload) messages as one transaction: all or none. Raises the first failure."""
        begin = end = body(0, b"", subsystem)
        out = [self._framed(BATCH_BEGIN, F_REQUEST, begin)]
        first = self._sequence
        for i, (type_, flags, payload) in enumerate(messages):
            last = F_ACK if i == len(messages) - 1 else 0
            out.append(self._framed(subsystem << 8 | type_, F_REQUEST | flags | last, payload))
        acknowledged = self._sequence
        out.append(self._framed(BATCH_END, F_REQUEST, end))
        self._socket.send(b"".join(out))
        failure = 0
        while True:
            # The kernel has answered before `send` returns; nothing more to read means that it dropped the rest after a failure.
            try:
                data = self._socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                failure = failure or errno.EIO
                break
            done = False
            for sequence, kind, payload_view in _messages(data):
                if kind == NLMSG_ERROR and first <= sequence:
                    failure = failure or -struct.unpack_from("=i", payload_view)[0]
                    done = done or sequence >= acknowledged
            if done:
                break
        if failure:
            while self._drain():
                pass
            raise OSError(failure, os.strerror(failure))

    def _drain(self) -> bool:
        try:
            return bool(self._socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    def _framed(self, type_: int, flags: int, payload: bytes) -> bytes:
        self._sequence += 1
        return _header.pack(16 + len(payload), type_, flags, self._sequence, 0) + payload

    def _answers(self, wanted: int) -> Iterator[memoryview]:
        while True:
            for sequence, kind, payload in _messages(self._socket.recv(RECEIVE_BYTES)):
                if sequence != wanted:
                    continue
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield payload[4:]


def _messages(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    view = memoryview(data)
    at = 0
    while at + 16 <= len(view):
        length, kind, _, sequence, _ = _header.unpack_from(view, at)
        yield sequence, kind, view[at + 16 : at + length]
        at += (length + 3) & ~3
