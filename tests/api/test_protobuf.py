"""The protobuf codec against Google's runtime: every message with all fields set, both ways; and hostile bytes."""

import base64

import orjson
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from fastkube._ext import protobuf as kernel
from fastkube.api import protobuf

F = descriptor_pb2.FieldDescriptorProto
SCALARS = {"string": F.TYPE_STRING, "bytes": F.TYPE_BYTES, "bool": F.TYPE_BOOL, "int32": F.TYPE_INT32, "int64": F.TYPE_INT64, "double": F.TYPE_DOUBLE}
# What the messages that stand for one JSON value look like on the wire.
WRAPPED = {
    "quantity": [("string", 1, F.TYPE_STRING, 0)],
    "intstr": [("type", 1, F.TYPE_INT64, 0), ("intVal", 2, F.TYPE_INT32, 0), ("strVal", 3, F.TYPE_STRING, 0)],
    "time": [("seconds", 1, F.TYPE_INT64, 0), ("nanos", 2, F.TYPE_INT32, 0)],
    "microtime": [("seconds", 1, F.TYPE_INT64, 0), ("nanos", 2, F.TYPE_INT32, 0)],
    "raw": [("raw", 1, F.TYPE_BYTES, 0)],
    "strings": [("items", 1, F.TYPE_STRING, 1)],
    "schema-or-array": [("schema", 1, "schema", 0), ("jSONSchemas", 2, "schema", 1)],
    "schema-or-bool": [("allows", 1, F.TYPE_BOOL, 0), ("schema", 2, "schema", 0)],
    "schema-or-strings": [("schema", 1, "schema", 0), ("property", 2, F.TYPE_STRING, 1)],
}
TABLES = protobuf._tables()
SCHEMA = next(row[3] for rows in TABLES.values() for row in rows if row[2] == "schema-or-array")
KINDS = sorted(
    k for k in protobuf._definitions() if protobuf.message_of(*k.rsplit("/", 1)) or protobuf.message_of(k.rsplit("/", 1)[0].strip("/"), k.rsplit("/", 1)[1])
)


def flat(name: str) -> str:
    return name.replace(".", "_").replace("-", "_")


@pytest.fixture(scope="module")
def google():
    """Message classes of Google's runtime, made from the same table."""
    file = descriptor_pb2.FileDescriptorProto(name="k8s.proto", package="k", syntax="proto2")
    for kind, fields in WRAPPED.items():
        message = file.message_type.add(name=flat(kind))
        for name, number, type_, repeated in fields:
            f = message.field.add(name=name, number=number, label=F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL)
            if type_ == "schema":
                f.type, f.type_name = F.TYPE_MESSAGE, f".k.{flat(SCHEMA)}"
            else:
                f.type = type_
    for name, rows in TABLES.items():
        message = file.message_type.add(name=flat(name))
        for number, json_name, kind, target, flags in rows:
            f = message.field.add(name=f"f{number}", number=number, label=F.LABEL_REPEATED if flags & 3 else F.LABEL_OPTIONAL, json_name=json_name)
            inner = message
            if flags & 2:
                entry = message.nested_type.add(name=f"F{number}Entry")
                entry.options.map_entry = True
                entry.field.add(name="key", number=1, type=F.TYPE_STRING, label=F.LABEL_OPTIONAL)
                f.type, f.type_name = F.TYPE_MESSAGE, f".k.{flat(name)}.F{number}Entry"
                f = entry.field.add(name="value", number=2, label=F.LABEL_OPTIONAL)
                inner = entry
            assert inner is not None
            if kind in SCALARS:
                f.type = SCALARS[kind]
            else:
                f.type, f.type_name = F.TYPE_MESSAGE, f".k.{flat(target if kind == 'message' else kind)}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"k.{flat(name)}"))


SAMPLES = {
    "string": "texté", "bytes": base64.b64encode(b"\0\xff").decode(), "bool": True, "int32": -7, "int64": 1 << 40, "double": 1.5, "quantity": "100m", "time": "2026-11-20T22:43:00Z",
    "microtime": "2026-11-20T22:43:00.123456Z", "raw": {"a": [1, "b"]}, "strings": ["x", "y"],
}  # fmt: skip


def full(name: str, depth: int = 0, variant: int = 0) -> dict:
    """An object with every field set, down to a depth at which recursive kinds stop."""
    out = {}
    for _, json_name, kind, target, flags in TABLES[name]:
        if flags & 8:
            out.update(full(target, depth, variant))
            continue
        if kind == "message":
            if depth > 5:
                continue
            value = full(target, depth + 1, variant)
        elif kind == "intstr":
            value = "http" if variant else 8080
        elif kind.startswith("schema"):
            if depth > 3:
                continue
            value = (
                full(SCHEMA, depth + 2)
                if variant
                else {"schema-or-array": [full(SCHEMA, depth + 3)], "schema-or-bool": False, "schema-or-strings": ["k"]}[kind]
            )
        else:
            value = SAMPLES[kind]
        out[json_name] = [value] if flags & 1 else {"key": value, "other": value} if flags & 2 else value
    return out


def to_google(google, name: str, obj: dict):
    """The same object built with Google's classes, by a plain walk of the table."""
    message = google(name)()
    for number, json_name, kind, target, flags in TABLES[name]:
        field = f"f{number}"
        if flags & 8:
            getattr(message, field).CopyFrom(to_google(google, target, obj))
            continue
        if json_name not in obj:
            continue
        value = obj[json_name]
        items = value if flags & 1 else list(value.values()) if flags & 2 else [value]
        made = [single(google, kind, target, v) for v in items]
        if flags & 1:
            getattr(message, field).extend(made)
        elif flags & 2:
            for key, one in zip(value, made, strict=True):
                if kind in SCALARS:
                    getattr(message, field)[key] = one
                else:
                    getattr(message, field)[key].CopyFrom(one)
        elif kind in SCALARS:
            setattr(message, field, made[0])
        else:
            getattr(message, field).CopyFrom(made[0])
    return message


def single(google, kind, target, value):
    if kind == "bytes":
        return base64.b64decode(value)
    if kind in SCALARS:
        return value
    if kind == "message":
        return to_google(google, target, value)
    cls = google(kind)
    if kind == "quantity":
        return cls(string=value)
    if kind == "intstr":
        return cls(type=1, strVal=value) if isinstance(value, str) else cls(type=0, intVal=value)
    if kind in ("time", "microtime"):
        import datetime

        moment = datetime.datetime.fromisoformat(value)
        return cls(seconds=int(moment.replace(microsecond=0).timestamp()), nanos=moment.microsecond * 1000)
    if kind == "raw":
        return cls(raw=orjson.dumps(value))
    if kind == "strings":
        return cls(items=value)
    if kind == "schema-or-bool" and isinstance(value, bool):
        return cls(allows=value)
    if kind == "schema-or-strings" and isinstance(value, list):
        return cls(property=value)
    if isinstance(value, list):
        return cls(jSONSchemas=[to_google(google, SCHEMA, v) for v in value])
    more = {"allows": True} if kind == "schema-or-bool" else {}
    return cls(schema=to_google(google, SCHEMA, value), **more)


@pytest.mark.parametrize("variant", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_with_all_fields_set(google, kind, variant):
    group, version, name = kind.split("/")
    api_version = f"{group}/{version}" if group else version
    obj = {"apiVersion": api_version, "kind": name, **full(protobuf.message_of(api_version, name).name, variant=variant)}
    body = protobuf.encode(obj)
    assert protobuf.decode(body) == obj
    message = protobuf.message_of(api_version, name)
    theirs = google(message.name)()
    raw = kernel.pieces(body[4:])[2]
    theirs.ParseFromString(raw)
    want = to_google(google, message.name, obj)
    assert theirs == want
    assert kernel.decode(message, want.SerializeToString()) == {k: v for k, v in obj.items() if k not in ("apiVersion", "kind")}


def test_zero_of_a_pointer_is_kept_and_of_a_plain_field_is_not():
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 0, "paused": False, "minReadySeconds": 0, "selector": {}, "template": {}}}
    assert protobuf.decode(protobuf.encode(deployment))["spec"] == {"replicas": 0, "selector": {}, "template": {}}


def test_what_kubectl_sends():
    """`kubectl create configmap a --from-literal=x=y`, as kubectl 1.32 put it on the wire."""
    body = bytes.fromhex("6b3873000a0f0a0276311209436f6e6669674d6170121b0a110a0161120" + "01a0022002a00320038004200" + "12060a01781201791a002200")
    assert protobuf.decode(body) == {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "y"}}


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read_but_never_crash(data):
    for body in (data, protobuf.MAGIC + data):
        try:
            protobuf.decode(body)
        except protobuf.DecodeError:
            pass
    try:
        kernel.decode(protobuf.message_of("v1", "Pod"), data)
    except protobuf.DecodeError:
        pass


@given(st.data())
def test_damaged_bodies_never_crash(data):
    raw = bytearray(kernel.pieces(protobuf.encode({"apiVersion": "v1", "kind": "Pod", **full("core.v1.Pod")})[4:])[2])
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        kernel.decode(protobuf.message_of("v1", "Pod"), bytes(raw))
    except protobuf.DecodeError:
        pass


def test_nesting_is_bounded():
    schema = {}
    for _ in range(200):
        schema = {"not": schema}
    with pytest.raises(protobuf.EncodeError):
        kernel.encode(protobuf._message(SCHEMA), schema)


def test_watch_frame_is_length_delimited():
    frame = protobuf.watch_frame("ADDED", protobuf.encode({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}))
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    pieces = kernel.pieces(frame[4:])
    assert pieces[1] == b"ADDED"
    assert protobuf.decode(kernel.pieces(pieces[2])[1])["metadata"] == {"name": "a"}
