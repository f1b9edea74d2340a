"""ObjectMeta, names and formats, times."""

import copy

import pytest

from fastkube.api import formats, kinds, meta, times
from fastkube.api.errors import ApiError
from fastkube.api.schema import DecodeError

NOW, UID = "2026-11-20T00:00:00Z", "2b4f9a0e-64c3-4f7c-9d4b-1b5a2f9a7c11"
RULES = kinds.of("", "ConfigMap")


def created(**metadata):
    obj = {"metadata": {"name": "a", **metadata}}
    meta.prepare_create(obj, "ns", True)
    meta.fill_create(obj, NOW, UID, "bcdfg")
    return obj


def fields(obj):
    return [e.field for e in meta.validate_create(RULES, obj, True)]


def test_create_fills_in():
    obj = created(name="", generateName="web-", deletionTimestamp=NOW, uid="mine", creationTimestamp="2020-01-01T00:00:00Z")
    assert obj["metadata"] == {"name": "web-bcdfg", "generateName": "web-", "namespace": "ns", "creationTimestamp": NOW, "uid": UID}
    assert fields(obj) == []


def test_long_generated_names_are_cut():
    assert len(meta.generated_name("x" * 100, "bcdfg")) == 63


def test_namespace_must_agree():
    with pytest.raises(ApiError) as e:
        meta.prepare_create({"metadata": {"namespace": "other"}}, "ns", True)
    assert e.value.code == 400
    with pytest.raises(ApiError):
        meta.check_name({"metadata": {"name": "a"}}, "b")


@pytest.mark.parametrize(
    "metadata, bad",
    [
        ({"name": ""}, ["metadata.name"]),
        ({"name": "Bad"}, ["metadata.name"]),
        ({"name": "a" * 254}, ["metadata.name"]),
        ({"generateName": "Bad-"}, ["metadata.generateName"]),
        ({"labels": {"a": "x" * 64}}, ["metadata.labels"]),
        ({"labels": {"a/b/c": "x"}}, ["metadata.labels"]),
        ({"annotations": {"A.b/c": "anything at all\n"}}, []),
        ({"annotations": {"bad key": ""}}, ["metadata.annotations"]),
        ({"annotations": {"a": "x" * (256 * 1024 - 1)}}, []),
        ({"annotations": {"a": "x" * (256 * 1024)}}, ["metadata.annotations"]),
        ({"annotations": {"a": "é" * (128 * 1024)}}, ["metadata.annotations"]),
        ({"finalizers": ["example.com/a", "kubernetes"]}, []),
        ({"finalizers": ["bad one"]}, ["metadata.finalizers"]),
        ({"finalizers": ["orphan", "foregroundDeletion"]}, ["metadata.finalizers"]),
        ({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": True}]}, []),
        ({"ownerReferences": [{}]}, [f"metadata.ownerReferences.{k}" for k in ("apiVersion", "kind", "name", "uid")]),
        ({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": n, "uid": n, "controller": True} for n in "ab"]}, ["metadata.ownerReferences"]),
        ({"ownerReferences": [{"apiVersion": "v1", "kind": "Event", "name": "p", "uid": "u"}]}, ["metadata.ownerReferences"]),
    ],
)
def test_create_rules(metadata, bad):
    assert fields(created(**metadata)) == bad


def updated(change, old=None):
    old = old or created()
    obj = copy.deepcopy(old)
    obj["metadata"]["resourceVersion"] = "1"
    obj["metadata"].update(change)
    meta.prepare_update(obj, old, "ns", True)
    return obj, [e.field for e in meta.validate_update(obj, old)]


def test_update_rules():
    assert updated({})[1] == []
    assert updated({"uid": ""})[0]["metadata"]["uid"] == UID
    assert updated({"uid": "other"})[1] == ["metadata.uid"]
    assert updated({"creationTimestamp": "2030-01-01T00:00:00Z"})[0]["metadata"]["creationTimestamp"] == NOW
    assert updated({"deletionTimestamp": NOW}) == (updated({})[0], [])
    assert updated({"resourceVersion": ""})[1] == ["metadata.resourceVersion"]
    assert updated({"name": "b"})[1] == ["metadata.name"]


def test_no_new_finalizers_once_deletion_has_begun():
    old = created(finalizers=["example.com/a"])
    old["metadata"]["deletionTimestamp"] = NOW
    assert updated({"finalizers": []}, old)[1] == []
    assert updated({"finalizers": ["example.com/a", "example.com/b"]}, old)[1] == ["metadata.finalizers"]
    assert updated({"deletionTimestamp": None}, old)[0]["metadata"]["deletionTimestamp"] == NOW


def test_kinds_whose_updates_name_a_version():
    assert meta.version_missing(kinds.of("coordination.k8s.io", "Lease"), {"metadata": {}})
    assert not meta.version_missing(RULES, {"metadata": {}})


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        (formats.label, ["a", "a-b", "0a", "a" * 63], ["", "-a", "a-", "A", "a.b", "a_b", "a" * 64, "é"]),
        (formats.subdomain, ["a.b", "a-b.c", "0"], ["", ".a", "a.", "a..b", "A", "a_b", "-a"]),
        (formats.label_1035, ["a", "a0-b"], ["0a", "-a", "", "A"]),
        (formats.qualified_name, ["a", "A_b.c", "a.b/C"], ["", "/a", "a/", "a/b/c", "-a", "A.b/c", "a b"]),
        (formats.label_value, ["", "A.b_c-d"], ["-a", "a-", "a b", "x" * 64]),
        (formats.wildcard_subdomain, ["*.a.b"], ["a.b", "*", "*.", "*.*.a"]),
        (formats.config_key, ["a", ".a", "a..b"], ["", ".", "..", "..a", "a/b", "a b"]),
        (formats.env_name, ["A", "a b", "1"], ["", "a=b", "é", "\t"]),
        (formats.port_name, ["a", "http-2"], ["", "A", "-a", "a--b", "80", "a" * 16]),
        (formats.c_identifier, ["_a1"], ["1a", "a-b", ""]),
        (formats.percent, ["5%", "100%"], ["5", "%", "-5%"]),
        (formats.fully_qualified_name, ["a.b.c"], ["a.b", "A.b.c"]),
        (formats.path_segment, ["a:b", "A b"], ["a/b", ".", "..", "a%b"]),
    ],
)  # fmt: skip
def test_formats(rule, good, bad):
    assert [v for v in good if rule(v)] == []
    assert [v for v in bad if not rule(v)] == []


@pytest.mark.parametrize(
    "text, family",
    [
        ("10.0.0.1", 4),
        ("010.0.0.1", 4),
        ("::1", 6),
        ("::ffff:10.0.0.1", 4),
        ("10.0.0", None),
        ("10.0.0.256", None),
        ("fe80::1%eth0", None),
        ("", None),
        ("a", None),
        ("1.2.3.4/5", None),
    ],
)
def test_sloppy_ip(text, family):
    found = formats.sloppy_ip(text)
    assert (found.version if found else None) == family


@pytest.mark.parametrize(
    "text, ok",
    [
        ("10.0.0.0/8", True),
        ("10.1.0.0/8", True),
        ("010.0.0.0/8", True),
        ("::/0", True),
        ("10.0.0.0", False),
        ("10.0.0.0/33", False),
        ("10.0.0.0/08", False),
        ("x/8", False),
    ],
)
def test_sloppy_cidr(text, ok):
    assert (formats.sloppy_cidr(text) is not None) is ok


@pytest.mark.parametrize(
    "text, canonical",
    [
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"), ("2026-01-02T03:04:05.999Z", "2026-01-02T03:04:05Z"), ("2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05Z"),
        ("0001-01-01T00:00:00Z", None), ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"), ("0999-01-01T00:00:00Z", "0999-01-01T00:00:00Z"),
    ],
)  # fmt: skip
def test_times(text, canonical):
    assert times.canonical(text) == canonical


def test_micro_times():
    assert times.canonical_micro("2026-01-02T03:04:05.000001Z") == "2026-01-02T03:04:05.000001Z"
    assert times.canonical_micro("2026-01-02T03:04:05.123456+01:00") == "2026-01-02T02:04:05.123456Z"
    with pytest.raises(DecodeError):
        times.canonical_micro("2026-01-02T03:04:05Z")


@pytest.mark.parametrize(
    "text, says",
    [
        ("", 'parsing time "" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "2006"'),
        ("2026-01-01T00:00:00Zx", 'parsing time "2026-01-01T00:00:00Zx": extra text: "x"'),
        ("2026-13-01T00:00:00Z", 'parsing time "2026-13-01T00:00:00Z": month out of range'),
        ("2026-02-30T00:00:00Z", 'parsing time "2026-02-30T00:00:00Z": day out of range'),
        ("2026-01-01 00:00:00Z", 'parsing time "2026-01-01 00:00:00Z" as "2006-01-02T15:04:05Z07:00": cannot parse " 00:00:00Z" as "T"'),
        ("2026-01-01T25:00:00Z", 'parsing time "2026-01-01T25:00:00Z": hour out of range'),
    ],
)
def test_times_refused(text, says):
    with pytest.raises(DecodeError, match="^" + __import__("re").escape(says) + "$"):
        times.canonical(text)
