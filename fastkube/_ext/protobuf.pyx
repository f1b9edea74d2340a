# cython: language_level=3
"""Kubernetes' protobuf form of objects, both ways: bytes of a message to the dict that its JSON is, and back.

Tables (`Message`, `Field`) say how a message's fields are called in JSON; `api.protobuf` builds them. Wire format: the protocol buffers encoding
(https://protobuf.dev/programming-guides/encoding/), proto2, groups refused. Unknown fields are skipped, as the Go types skip them.
"""

import binascii
import datetime
import time

import orjson

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

cpdef enum Kind:
    STRING
    BYTES
    BOOL
    INT32
    INT64
    DOUBLE
    MESSAGE
    QUANTITY
    INTSTR
    TIME
    MICROTIME
    RAW
    STRINGS
    SCHEMA_OR_ARRAY
    SCHEMA_OR_BOOL
    SCHEMA_OR_STRINGS

cpdef enum Flags:
    REPEATED = 1
    MAP = 2
    KEPT = 4  # written even when zero
    INLINED = 8

cdef enum:
    DEPTH_MAX = 100
    VARINT = 0
    FIXED64 = 1
    DELIMITED = 2
    FIXED32 = 5


class DecodeError(ValueError):
    """The bytes are no such message."""


class EncodeError(ValueError):
    """The object does not fit its message; names the field."""


cdef class Field:
    cdef readonly int number
    cdef readonly str name
    cdef readonly int kind
    cdef readonly int flags
    cdef public Message message

    def __init__(self, int number, str name, int kind, int flags):
        self.number = number
        self.name = name
        self.kind = kind
        self.flags = flags


cdef class Message:
    """Fields by number, in order."""

    cdef readonly str name
    cdef readonly list fields
    cdef dict by_number

    def __init__(self, str name):
        self.name = name
        self.fields = []
        self.by_number = {}

    def add(self, Field field):
        self.fields.append(field)
        self.by_number[field.number] = field


# ---- decoding

cdef struct Cursor:
    const unsigned char* at
    const unsigned char* end


cdef uint64_t _varint(Cursor* c) except? 0xDEAD:
    cdef uint64_t value = 0
    cdef int shift = 0
    cdef unsigned char byte
    while c.at < c.end:
        byte = c.at[0]
        c.at += 1
        value |= <uint64_t>(byte & 0x7F) << shift
        if not byte & 0x80:
            return value
        shift += 7
        if shift > 63:
            raise DecodeError("varint is too long")
    raise DecodeError("unexpected end of data")


cdef Cursor _block(Cursor* c) except *:
    """The next length-delimited piece."""
    cdef uint64_t size = _varint(c)
    cdef Cursor inner
    if size > <uint64_t>(c.end - c.at):
        raise DecodeError("unexpected end of data")
    inner.at = c.at
    c.at += size
    inner.end = c.at
    return inner


cdef int _skip(Cursor* c, int wire) except -1:
    if wire == VARINT:
        _varint(c)
    elif wire == DELIMITED:
        _block(c)
    elif wire == FIXED64 or wire == FIXED32:
        if c.end - c.at < (8 if wire == FIXED64 else 4):
            raise DecodeError("unexpected end of data")
        c.at += 8 if wire == FIXED64 else 4
    else:
        raise DecodeError(f"wire type {wire} is not supported")
    return 0


cdef str _text(Cursor piece):
    try:
        return PyUnicode_DecodeUTF8(<const char*>piece.at, piece.end - piece.at, NULL)
    except UnicodeDecodeError as e:
        raise DecodeError(f"string is not UTF-8: {e.reason}") from None


cdef bytes _raw(Cursor piece):
    return PyBytes_FromStringAndSize(<const char*>piece.at, piece.end - piece.at)


cdef inline object _integer(int kind, uint64_t value):
    if kind == BOOL:
        return value != 0
    if kind == INT32:
        return <int32_t>value
    return <int64_t>value


cdef object _scalar(Cursor* c, int kind, int wire):
    """A field whose wire form is its own: numbers, strings, bytes."""
    cdef double number
    if kind == STRING or kind == BYTES:
        if wire != DELIMITED:
            raise DecodeError(f"wire type {wire} for a string")
        return _text(_block(c)) if kind == STRING else binascii.b2a_base64(_raw(_block(c)), newline=False).decode()
    if kind == DOUBLE:
        if wire != FIXED64 or c.end - c.at < 8:
            raise DecodeError(f"wire type {wire} for a double")
        memcpy(&number, c.at, 8)
        c.at += 8
        return number
    if wire != VARINT:
        raise DecodeError(f"wire type {wire} for a number")
    return _integer(kind, _varint(c))


cdef object _single(Cursor piece, Field f, int depth):
    """A message-like field: the JSON value it stands for; None for one that means absent."""
    cdef int kind = f.kind
    if kind == MESSAGE:
        out = {}
        _fields(piece, f.message, out, depth)
        return out
    return _wrapped(piece, f, depth)


cdef object _wrapped(Cursor piece, Field f, int depth):
    cdef int kind = f.kind, number, wire
    cdef uint64_t tag
    cdef dict found = {}
    cdef list many = []
    cdef Cursor inner
    while piece.at < piece.end:
        tag = _varint(&piece)
        number, wire = <int>(tag >> 3), <int>(tag & 7)
        if wire == VARINT:
            found[number] = <int64_t>_varint(&piece)
        elif wire == DELIMITED:
            inner = _block(&piece)
            if kind == SCHEMA_OR_ARRAY or kind == SCHEMA_OR_BOOL or kind == SCHEMA_OR_STRINGS:
                if kind == SCHEMA_OR_STRINGS and number == 2:
                    many.append(_text(inner))
                    continue
                schema = {}
                _fields(inner, f.message, schema, depth + 1)
                if kind == SCHEMA_OR_ARRAY and number == 2:
                    many.append(schema)
                else:
                    found[number] = schema
            elif kind == STRINGS:
                many.append(_text(inner))
            elif kind == RAW:
                found[number] = _raw(inner)
            else:
                found[number] = _text(inner)
        else:
            _skip(&piece, wire)
    if kind == QUANTITY:
        return found.get(1, "0")
    if kind == INTSTR:
        return found.get(3, "") if found.get(1, 0) == 1 else found.get(2, 0)
    if kind == TIME or kind == MICROTIME:
        return _time(found.get(1, 0), found.get(2, 0), kind == MICROTIME) if found else None
    if kind == RAW:
        if not found.get(1):
            return None
        try:
            return orjson.loads(found[1])
        except orjson.JSONDecodeError:
            raise DecodeError("embedded object is not JSON") from None
    if kind == STRINGS:
        return many
    if kind == SCHEMA_OR_BOOL:
        return found[2] if 2 in found else bool(found.get(1, 0))
    return found[1] if 1 in found else many


cdef str _time(int64_t seconds, int64_t nanos, bint micro):
    try:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        raise DecodeError("time is out of range") from None
    return f"{text}.{nanos // 1000:06d}Z" if micro else text + "Z"


cdef int _fields(Cursor c, Message m, dict out, int depth) except -1:
    cdef uint64_t tag
    cdef int number, wire
    cdef Field f
    cdef Cursor piece
    if depth > DEPTH_MAX:
        raise DecodeError("nested too deeply")
    while c.at < c.end:
        tag = _varint(&c)
        number, wire = <int>(tag >> 3), <int>(tag & 7)
        found = m.by_number.get(number)
        if found is None:
            _skip(&c, wire)
            continue
        f = found
        if f.flags & MAP:
            if wire != DELIMITED:
                raise DecodeError(f"wire type {wire} for a map")
            key, value = _entry(_block(&c), f, depth)
            mapping = out.get(f.name)
            if mapping is None:
                mapping = out[f.name] = {}
            mapping[key] = value
        elif f.kind <= DOUBLE:
            if f.flags & REPEATED:
                values = out.get(f.name)
                if values is None:
                    values = out[f.name] = []
                if wire == DELIMITED and f.kind >= BOOL:  # packed
                    piece = _block(&c)
                    while piece.at < piece.end:
                        values.append(_scalar(&piece, f.kind, FIXED64 if f.kind == DOUBLE else VARINT))
                else:
                    values.append(_scalar(&c, f.kind, wire))
            else:
                value = _scalar(&c, f.kind, wire)
                if value or f.flags & KEPT:
                    out[f.name] = value
        else:
            if wire != DELIMITED:
                raise DecodeError(f"wire type {wire} for a message")
            piece = _block(&c)
            if f.flags & INLINED:
                _fields(piece, f.message, out, depth + 1)
                continue
            value = _single(piece, f, depth + 1)
            if f.flags & REPEATED:
                values = out.get(f.name)
                if values is None:
                    values = out[f.name] = []
                values.append(value)
            elif value is not None:
                out[f.name] = value
    return 0


cdef tuple _entry(Cursor piece, Field f, int depth):
    """One entry of a map: field 1 its key, field 2 its value."""
    cdef uint64_t tag
    cdef int wire
    key, value = "", None
    while piece.at < piece.end:
        tag = _varint(&piece)
        wire = <int>(tag & 7)
        if tag >> 3 == 1 and wire == DELIMITED:
            key = _text(_block(&piece))
        elif tag >> 3 == 2:
            if f.kind <= DOUBLE:
                value = _scalar(&piece, f.kind, wire)
            elif wire == DELIMITED:
                value = _single(_block(&piece), f, depth + 1)
            else:
                raise DecodeError(f"wire type {wire} for a message")
        else:
            _skip(&piece, wire)
    if value is None:
        value = {STRING: "", BYTES: "", BOOL: False, INT32: 0, INT64: 0, DOUBLE: 0.0, MESSAGE: {}, QUANTITY: "0", STRINGS: []}.get(f.kind)
    return key, value


def decode(Message message, bytes data):
    """The dict that `data` stands for. Raises DecodeError."""
    cdef Cursor c
    cdef dict out = {}
    c.at = <const unsigned char*>PyBytes_AS_STRING(data)
    c.end = c.at + PyBytes_GET_SIZE(data)
    _fields(c, message, out, 0)
    return out


def pieces(bytes data):
    """The length-delimited fields of a message as {number: bytes}: for envelopes. Raises DecodeError."""
    cdef Cursor c
    cdef uint64_t tag
    cdef dict out = {}
    c.at = <const unsigned char*>PyBytes_AS_STRING(data)
    c.end = c.at + PyBytes_GET_SIZE(data)
    while c.at < c.end:
        tag = _varint(&c)
        if tag & 7 == DELIMITED:
            out[<int>(tag >> 3)] = _raw(_block(&c))
        else:
            _skip(&c, <int>(tag & 7))
    return out


# ---- encoding

cdef class _Buffer:
    cdef unsigned char* data
    cdef Py_ssize_t size
    cdef Py_ssize_t room

    def __cinit__(self):
        self.room = 1024
        self.data = <unsigned char*>malloc(self.room)
        if self.data == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.data)

    cdef int ensure(self, Py_ssize_t more) except -1:
        cdef unsigned char* grown
        if self.size + more > self.room:
            self.room = max(self.room * 2, self.size + more)
            grown = <unsigned char*>realloc(self.data, self.room)
            if grown == NULL:
                raise MemoryError()
            self.data = grown
        return 0

    cdef int varint(self, uint64_t value) except -1:
        self.ensure(10)
        while value > 0x7F:
            self.data[self.size] = <unsigned char>((value & 0x7F) | 0x80)
            self.size += 1
            value >>= 7
        self.data[self.size] = <unsigned char>value
        self.size += 1
        return 0

    cdef int tag(self, int number, int wire) except -1:
        return self.varint(<uint64_t>number << 3 | wire)

    cdef int block(self, const char* data, Py_ssize_t size) except -1:
        self.varint(size)
        self.ensure(size)
        memcpy(self.data + self.size, data, size)
        self.size += size
        return 0

    cdef Py_ssize_t open(self) except -1:
        """Begin a piece whose length is not known yet."""
        self.ensure(1)
        self.size += 1
        return self.size

    cdef int close(self, Py_ssize_t start) except -1:
        """Its length goes before it."""
        cdef Py_ssize_t size = self.size - start
        cdef int extra = 0
        cdef Py_ssize_t rest = size >> 7
        while rest:
            extra += 1
            rest >>= 7
        if extra:
            self.ensure(extra)
            memmove(self.data + start + extra, self.data + start, size)
        self.size = start - 1
        self.varint(size)
        self.size += size
        return 0


cdef int _put_text(_Buffer b, object text) except -1:
    cdef Py_ssize_t size
    cdef const char* data
    if not isinstance(text, str):
        raise TypeError(f"a string is wanted, not {type(text).__name__}")
    data = PyUnicode_AsUTF8AndSize(text, &size)
    return b.block(data, size)


cdef int _put_bytes(_Buffer b, bytes raw) except -1:
    return b.block(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))


cdef int _put_scalar(_Buffer b, int number, int kind, object value) except -1:
    cdef double d
    if kind == STRING:
        b.tag(number, DELIMITED)
        _put_text(b, value)
    elif kind == BYTES:
        b.tag(number, DELIMITED)
        _put_bytes(b, binascii.a2b_base64(value))
    elif kind == DOUBLE:
        d = value
        b.tag(number, FIXED64)
        b.ensure(8)
        memcpy(b.data + b.size, &d, 8)
        b.size += 8
    else:
        b.tag(number, VARINT)
        b.varint(<uint64_t><int64_t>int(value))
    return 0


cdef int _put(_Buffer b, Field f, object value, int depth) except -1:
    """One value of a field that is no scalar."""
    cdef Py_ssize_t start
    b.tag(f.number, DELIMITED)
    start = b.open()
    _put_inside(b, f, value, depth)
    return b.close(start)


cdef int _put_inside(_Buffer b, Field f, object value, int depth) except -1:
    cdef int kind = f.kind
    cdef Py_ssize_t start
    if kind == MESSAGE:
        _put_fields(b, f.message, value, depth + 1)
    elif kind == QUANTITY:
        _put_scalar(b, 1, STRING, value if isinstance(value, str) else str(value))
    elif kind == INTSTR:
        if isinstance(value, str):
            _put_scalar(b, 1, INT64, 1)
            _put_scalar(b, 3, STRING, value)
        else:
            _put_scalar(b, 1, INT64, 0)
            _put_scalar(b, 2, INT32, value)
    elif kind == TIME or kind == MICROTIME:
        seconds, nanos = _instant(value)
        _put_scalar(b, 1, INT64, seconds)
        _put_scalar(b, 2, INT32, nanos)
    elif kind == RAW:
        b.tag(1, DELIMITED)
        _put_bytes(b, orjson.dumps(value))
    elif kind == STRINGS:
        for item in value:
            _put_scalar(b, 1, STRING, item)
    elif kind == SCHEMA_OR_BOOL:
        if isinstance(value, bool):
            _put_scalar(b, 1, BOOL, value)
        else:
            _put_scalar(b, 1, BOOL, True)
            _put_schema(b, f, 2, value, depth)
    elif isinstance(value, list):
        for item in value:
            if kind == SCHEMA_OR_STRINGS:
                _put_scalar(b, 2, STRING, item)
            else:
                _put_schema(b, f, 2, item, depth)
    else:
        _put_schema(b, f, 1, value, depth)
    return 0


cdef int _put_schema(_Buffer b, Field f, int number, object value, int depth) except -1:
    cdef Py_ssize_t start
    b.tag(number, DELIMITED)
    start = b.open()
    _put_fields(b, f.message, value, depth + 1)
    return b.close(start)


cdef tuple _instant(object value):
    """Seconds and nanoseconds of an RFC 3339 time as the API writes it."""
    moment = datetime.datetime.fromisoformat(value)
    whole = moment.replace(microsecond=0)
    return int(whole.timestamp()), moment.microsecond * 1000


cdef int _put_fields(_Buffer b, Message m, object obj, int depth) except -1:
    cdef Field f
    cdef Py_ssize_t start, entry
    if depth > DEPTH_MAX:
        raise ValueError("nested too deeply")
    if not isinstance(obj, dict):
        raise TypeError(f"an object is wanted, not {type(obj).__name__}")
    for f in m.fields:
        if f.flags & INLINED:
            b.tag(f.number, DELIMITED)
            start = b.open()
            _put_fields(b, f.message, obj, depth + 1)
            b.close(start)
            continue
        value = (<dict>obj).get(f.name)
        if value is None:
            continue
        if f.flags & MAP:
            for key in sorted(value):
                b.tag(f.number, DELIMITED)
                entry = b.open()
                _put_scalar(b, 1, STRING, key)
                if f.kind <= DOUBLE:
                    _put_scalar(b, 2, f.kind, value[key])
                else:
                    b.tag(2, DELIMITED)
                    start = b.open()
                    _put_inside(b, f, value[key], depth)
                    b.close(start)
                b.close(entry)
        elif f.flags & REPEATED:
            for item in value:
                if f.kind <= DOUBLE:
                    _put_scalar(b, f.number, f.kind, item)
                else:
                    _put(b, f, item, depth)
        elif f.kind <= DOUBLE:
            _put_scalar(b, f.number, f.kind, value)
        else:
            _put(b, f, value, depth)
    return 0


def encode(Message message, dict obj):
    """The bytes of `obj`. What the message has no field for is left out. Raises EncodeError."""
    cdef _Buffer b = _Buffer()
    try:
        _put_fields(b, message, obj, 0)
    except (TypeError, ValueError, AttributeError) as e:
        raise EncodeError(f"{message.name}: {e}") from e
    return PyBytes_FromStringAndSize(<const char*>b.data, b.size)
