"""The edge: bodies in, stored bytes out."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube._ext import scan
from fastkube.api import codec, schema
from fastkube.api.errors import ApiError


def read(body, validation="Strict", kind="Pod", media="application/json", group="", version="v1"):
    return codec.read(body if isinstance(body, bytes) else json.dumps(body).encode(), media, group, version, kind, validation=validation)


def refused(*args, **kwargs):
    with pytest.raises(ApiError) as e:
        read(*args, **kwargs)
    return e.value


def test_kind_and_version_default_to_the_requests():
    assert read({"metadata": {"name": "a"}})[0]["kind"] == "Pod"
    assert "cannot be handled as a Pod" in refused({"kind": "Service"}).message
    assert 'no kind "Pod" is registered for version "v2"' in refused({"apiVersion": "v2"}).message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"x"',
        b"nul",
        b'{"a":}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a" 1}',
        b"{}{}",
        b'{"kind":1}',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"metadata":' * 3000,
    ],
)
def test_bad_json_is_a_400(body):
    assert refused(body).code == 400


def test_what_go_reads_is_read():
    assert read(b'{"metadata":{"name":"\xff"}}')[0]["metadata"]["name"] == "\ufffd"
    assert read(b'{"metadata":{"name":"\\ud800"}}')[0]["metadata"]["name"] == "\ufffd"


@pytest.mark.parametrize("validation, warnings", [("Warn", 2), ("Ignore", 0)])
def test_unknown_and_duplicate_fields(validation, warnings):
    body = b'{"metadata":{"name":"a","name":"b"},"spec":{"containers":[{"name":"c","image":"i","foo":1}],"bar":{"baz":2}}}'
    obj, said = read(body, validation)
    assert obj["metadata"]["name"] == "b"
    assert "bar" not in obj["spec"] and "foo" not in obj["spec"]["containers"][0]
    expected = ['duplicate field "metadata.name"', 'unknown field "spec.containers[0].foo"', 'unknown field "spec.bar"']
    assert said == (expected if warnings else [])
    assert refused(body).message == 'Pod in version "v1" cannot be handled as a Pod: strict decoding error: ' + ", ".join(expected)


@pytest.mark.parametrize(
    "body, says",
    [
        ({"spec": {"containers": "x"}}, "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container"),
        ({"spec": {"containers": [{"name": 1}]}}, "json: cannot unmarshal number into Go struct field Container.spec.containers.name of type string"),
        ({"spec": {"containers": [{"ports": [{"containerPort": 1.5}]}]}}, "json: cannot unmarshal number 1.5 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32"),
        ({"spec": {"containers": [{"ports": [{"containerPort": 2**31}]}]}}, "json: cannot unmarshal number 2147483648 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32"),
        ({"spec": {"hostNetwork": "yes"}}, "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool"),
        ({"metadata": {"labels": {"a": 1}}}, "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"),
        ({"metadata": {"creationTimestamp": "soon"}}, 'parsing time "soon" as "2006-01-02T15:04:05Z07:00": cannot parse "soon" as "2006"'),
        ({"spec": {"volumes": [{"downwardAPI": {"items": [{"path": 1}]}}]}}, "Go struct field DownwardAPIVolumeFile.spec.volumes.VolumeSource.downwardAPI.items.path of type string"),
    ],
)  # fmt: skip
def test_types(body, says):
    assert says in refused(body).message


def test_first_mismatch_is_told_but_own_decoders_win():
    assert "spec.hostNetwork" in refused({"spec": {"hostNetwork": 1, "hostPID": 1}}).message
    said = refused({"spec": {"hostNetwork": 1, "overhead": {"cpu": "x"}}}).message
    assert "quantities must match" in said


def test_nulls_and_empty_values_go_as_in_go():
    obj, _ = read(
        {
            "metadata": {"name": "a", "labels": None, "annotations": {}},
            "spec": {"containers": [None], "hostNetwork": False, "nodeSelector": {"a": None}, "priority": 0},
        }
    )
    assert obj["metadata"] == {"name": "a"}
    assert obj["spec"] == {"containers": [{"name": "", "resources": {}}], "nodeSelector": {"a": ""}, "priority": 0}
    assert obj["status"] == {}


def test_values_become_canonical():
    obj, _ = read(
        {
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": 0.5, "memory": "1024Mi"}}}]},
            "metadata": {"creationTimestamp": "2026-01-01T01:00:00+01:00"},
        }
    )
    assert obj["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}
    assert obj["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"


def test_base64():
    assert read({"data": {"a": "aGk="}}, kind="Secret")[0]["data"] == {"a": "aGk="}
    assert "illegal base64 data at input byte 3" in refused({"data": {"a": "abc!"}}, kind="Secret").message
    assert "illegal base64 data at input byte 4" in refused({"data": {"a": "YWJjx"}}, kind="Secret").message


YAML = "application/yaml"


def test_yaml():
    obj, said = read(b"metadata:\n  name: yes\n  labels: {a: '1', b: on, d: 2020-01-01}\nspec: {hostNetwork: true, priority: 0x10}\n", media=YAML)
    assert obj["metadata"] == {"name": "yes", "labels": {"a": "1", "b": "on", "d": "2020-01-01"}}
    assert obj["spec"]["priority"] == 16 and not said


@pytest.mark.parametrize("body", [b"a: [", b"- 1", b"a: *x", b"{a: 1}}", b"a: !!python/object:os.system 1", b"\t- a", b"a: &x [*x]"])
def test_bad_yaml_is_a_400(body):
    assert refused(body, media=YAML).code == 400


def test_yaml_bomb_is_refused():
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"] + [f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 9)]
    assert refused("\n".join(lines).encode(), media=YAML).code == 400


def test_yaml_duplicates():
    said = refused(b"metadata:\n  name: a\n  name: b\n", media=YAML).message
    assert 'key "name" already set in map' in said


def test_media_type():
    assert refused(b"{}", media="text/plain").code == 415


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_members_are_counted_alike(value):
    for text in (json.dumps(value).encode(), json.dumps(value, indent=2, ensure_ascii=False).encode()):
        assert schema.members(text) == schema.held(json.loads(text))


@given(st.binary(max_size=200))
def test_members_of_anything(data):
    assert schema.members(data) >= 0


@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=3), json_values, max_size=5), st.text("abcxyz", min_size=1, max_size=3))
def test_scan_finds_what_decoding_finds(value, key):
    for text in (orjson.dumps(value), json.dumps(value, indent=1).encode()):
        found = scan.find(text, (key.encode(),))
        assert (found is None) == (key not in value)
        if found is not None:
            assert json.loads(found) == value[key]


@given(st.binary(max_size=100))
def test_scan_of_anything(data):
    scan.find(data, (b"a", b"b"))
    scan.find(b'{"a":' + data, (b"a", b"b"))


def test_encode_leaves_the_place_for_the_revision():
    obj = {"metadata": {"name": "a", "resourceVersion": "7", "labels": {"x": "y"}}, "spec": {}, "kind": "Pod", "apiVersion": "v1"}
    data, at = codec.encode(obj)
    whole = data[:at] + b"42" + data[at:]
    assert whole.startswith(b'{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"42"')
    assert json.loads(whole) == {**obj, "metadata": {**obj["metadata"], "resourceVersion": "42"}}
    assert codec.metadata_of(whole) == json.loads(whole)["metadata"]
    assert obj["metadata"]["resourceVersion"] == "7"
