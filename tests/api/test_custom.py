"""Custom resources' pure parts: values against schemas, what schemas may say, CEL rules and their library."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.api import crd, gnostic, rules, schema, structural, values
from fastkube.runtime import clock


def messages(value, of, path="spec.x"):
    return [str(e) for e in values.validate(value, of, path)]


@pytest.mark.parametrize(
    "value, of, want",
    [
        ("a", {"type": "string", "minLength": 2}, ['spec.x: Invalid value: "a": spec.x in body should be at least 2 chars long']),
        ("abc", {"type": "string", "maxLength": 2}, ["spec.x: Too long: may not be more than 2 bytes"]),
        (5, {"type": "integer", "minimum": 5, "exclusiveMinimum": True}, ["spec.x: Invalid value: 5: spec.x in body should be greater than 5"]),
        (5, {"type": "number", "maximum": 4.5}, ["spec.x: Invalid value: 5: spec.x in body should be less than or equal to 4.5"]),
        (7, {"type": "integer", "multipleOf": 2}, ["spec.x: Invalid value: 7: spec.x in body should be a multiple of 2"]),
        (1.5, {"type": "integer"}, ['spec.x: Invalid value: "number": spec.x in body must be of type integer: "number"']),
        (1.0, {"type": "integer"}, []),
        (None, {"type": "string"}, ['spec.x: Invalid value: "null": spec.x in body must be of type string: "null"']),
        (None, {"type": "string", "nullable": True}, []),
        (True, {"type": "integer"}, ['spec.x: Invalid value: "boolean": spec.x in body must be of type integer: "boolean"']),
        ([1], {"type": "array", "minItems": 2}, ["spec.x: Invalid value: 1: spec.x in body should have at least 2 items"]),
        ({"a": 1}, {"type": "object", "maxProperties": 0}, ["spec.x: Too many: 1: must have at most 0 items"]),
        ({}, {"type": "object", "required": ["a", "b"]}, ["spec.x.a: Required value", "spec.x.b: Required value"]),
        ("nope", {"type": "string", "format": "date-time"}, ['spec.x: Invalid value: "nope": spec.x in body must be of type date-time: "nope"']),
        ("2026-01-01T00:00:00Z", {"type": "string", "format": "date-time"}, []),
        ("x", {"type": "string", "format": "not-a-format"}, []),
        (2**40, {"type": "integer", "format": "int32"}, ["spec.x: Invalid value: 1099511627776: spec.x in body must be of type int32"]),
        ("z", {"type": "string", "enum": ["a", 1]}, ['spec.x: Unsupported value: "z": supported values: "a", "1"']),
        ("c", {"type": "string", "not": {"enum": ["c"]}}, ['spec.x: Invalid value: "c": "spec.x" must not validate the schema (not)']),
        ("c", {"oneOf": [{"maxLength": 2}, {"minLength": 1}]}, ['spec.x: Invalid value: "c": "spec.x" must validate one and only one schema (oneOf). Found 2 valid alternatives']),
        ({"k": 1}, {"type": "object", "additionalProperties": {"type": "string"}}, ['spec.x.k: Invalid value: "integer": spec.x.k in body must be of type string: "integer"']),
    ],
)  # fmt: skip
def test_values(value, of, want):
    assert messages(value, of) == want


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from("ab"), v, max_size=2),
    max_leaves=6,
)
schemas = st.recursive(
    st.fixed_dictionaries({"type": st.sampled_from(["string", "integer", "boolean"])}, optional={"nullable": st.booleans()}),
    lambda s: st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(st.sampled_from("ab"), s, max_size=2)}, optional={"required": st.lists(st.sampled_from("ab"), unique=True, max_size=2)})
    | st.fixed_dictionaries({"type": st.just("array"), "items": s}),
    max_leaves=5,
)  # fmt: skip


def fits(value, of):
    """The model: JSON schema for the words generated here."""
    if value is None:
        return bool(of.get("nullable"))
    kinds = {"string": str, "integer": int, "boolean": bool, "object": dict, "array": list}
    if type(value) is not kinds[of["type"]]:
        return False
    if isinstance(value, dict):
        return all(r in value for r in of.get("required", ())) and all(fits(v, of["properties"][k]) for k, v in value.items() if k in of.get("properties", {}))
    return all(fits(v, of["items"]) for v in value) if isinstance(value, list) else True


@given(json_values, schemas)
def test_values_against_a_model(value, of):
    assert (values.validate(value, of) == []) == fits(value, of)


def test_defaults_fill_in_what_is_absent_and_only_that():
    of = {"type": "object", "properties": {
        "a": {"type": "object", "default": {}, "properties": {"b": {"type": "integer", "default": 7}}}, "n": {"type": "string", "default": "x", "nullable": True},
        "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"d": {"default": 1}}}}, "l": {"type": "array", "items": {"type": "object", "properties": {"d": {"default": 2}}}},
        "absent": {"type": "object", "properties": {"inner": {"default": 1}}}}}  # fmt: skip
    value = {"n": None, "m": {"k": {}}, "l": [{}, {"d": 0}]}
    values.default(value, of)
    assert value == {"a": {"b": 7}, "n": None, "m": {"k": {"d": 1}}, "l": [{"d": 2}, {"d": 0}]}
    again = orjson.loads(orjson.dumps(value))
    values.default(again, of)
    assert again == value
    value["a"]["b"] = 8
    assert of["properties"]["a"]["default"] == {}, "a default is copied, not shared"


def test_list_types_hold_each_item_once():
    of = {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"], "items": {"type": "object"}}
    assert [str(e) for e in values.validate_list_types([{"a": 1, "b": 2}, {"a": 1}, {"b": 2, "a": 1, "c": 3}], of, "l")] == [
        'l[2]: Duplicate value: {"a":1,"b":2}'
    ]
    assert [str(e) for e in values.validate_list_types(["x", "y", "x"], {"type": "array", "x-kubernetes-list-type": "set"}, "l")] == [
        'l[2]: Duplicate value: "x"'
    ]


def problems(of):
    return [str(e) for e in structural.validate({"type": "object", "properties": {"a": of}}, "s")]


@pytest.mark.parametrize(
    "of, want",
    [
        ({"type": "string"}, []),
        ({}, ["s.properties[a].type: Required value: must not be empty for specified object fields"]),
        ({"type": "array", "items": {}}, ["s.properties[a].items.type: Required value: must not be empty for specified array items"]),
        ({"x-kubernetes-int-or-string": True}, []),
        ({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}, []),
        ({"x-kubernetes-preserve-unknown-fields": True}, []),
        ({"type": "string", "anyOf": [{"type": "string"}]}, ["s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural"]),
        ({"type": "string", "allOf": [{"default": 1}]}, ["s.properties[a].allOf[0].default: Forbidden: must be undefined to be structural"]),
        ({"$ref": "x", "type": "object"}, ["s.properties[a].$ref: Forbidden: $ref is not supported"]),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, ["s.properties[a].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"]),
        ({"type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": {"type": "string"}}, ["s.properties[a].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"]),
        ({"type": "string", "x-kubernetes-list-type": "set"}, ['s.properties[a].type: Invalid value: "string": must be array if x-kubernetes-list-type is specified']),
        ({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
         ["s.properties[a].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"]),
        ({"type": "object", "x-kubernetes-embedded-resource": True}, ["s.properties[a].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"]),
        ({"type": "integer", "minimum": 3, "default": 2}, ["s.properties[a].default: Invalid value: 2:  in body should be greater than or equal to 3"]),
        ({"type": "string", "x-kubernetes-validations": [{"rule": "self =="}]}, None),
        ({"type": "string", "x-kubernetes-validations": [{"rule": "size(self)"}]}, None),
    ],
)  # fmt: skip
def test_what_schemas_may_say(of, want):
    got = problems(of)
    assert got == want if want is not None else (len(got) == 1 and "compilation failed" in got[0])


def test_a_schema_that_nests_without_end_is_refused():
    of = {"type": "string"}
    for _ in range(200):
        of = {"type": "object", "properties": {"a": of}}
    assert any("nested deeper" in p for p in problems(of))


@pytest.mark.parametrize(
    "expression, want",
    [
        ("[1,2,3].sum()", 6), ("[3,1].isSorted()", False), ("[1,5,2].max()", 5), ("[1,2,1].lastIndexOf(1)", 2), ("[1,2].indexOf(9)", -1), ("sets.contains([1,2],[1])", True), ("sets.intersects([1],[2])", False),
        ("'abc1'.find('[0-9]')", "1"), ("'a1b2'.findAll('[0-9]')", ["1", "2"]), ("quantity('1Gi').isGreaterThan(quantity('1G'))", True), ("quantity('1').add(quantity('500m')) == quantity('1500m')", True),
        ("quantity('2k').asInteger()", 2000), ("isQuantity('1x')", False), ("ip('10.0.0.1').family()", 4), ("isIP('x')", False), ("cidr('10.0.0.0/8').containsIP('10.1.2.3')", True), ("ip('127.0.0.1').isLoopback()", True),
        ("cidr('10.0.0.1/8').masked() == cidr('10.0.0.0/8')", True), ("cidr('10.0.0.0/8').containsCIDR('10.2.0.0/16')", True), ("url('https://a:80/b?c=d').getHost()", "a:80"), ("isURL('nope')", False), ("url('https://h/p').getEscapedPath()", "/p"),
        ("'a,b'.split(',')", ["a", "b"]), ("cel.bind(x, 1, x + 1)", 2), ("optional.of(1).orValue(2)", 1), ("duration('90m') > duration('1h')", True), ("'x'.matches('^x$')", True), ("[1,2].exists(i, i > 1)", True),
    ],
)  # fmt: skip
def test_library(expression, want):
    assert rules.compile_rule(expression).eval(data={}).plain_value() == want


def check(rule, value, old=None, of=None, **more):
    of = of or {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    whole = {"type": "object", "properties": {"spec": {**of, "x-kubernetes-validations": [{"rule": rule, **more}]}}}
    return [str(e) for e in rules.Rules(whole).check({"spec": value}, None if old is None else {"spec": old})]


def test_rules_say_what_is_wrong_and_where():
    assert check("self.a > 1", {"a": 2}) == []
    assert check("self.a > 1", {"a": 1}) == ['spec: Invalid value: "object": failed rule: self.a > 1']
    assert check("self.a > 1", {"a": 1}, message="too few", fieldPath=".a", reason="FieldValueRequired") == ["spec.a: Required value: too few"]
    assert check("self.a > 1", {"a": 1}, messageExpression="'a is ' + string(self.a)") == ['spec: Invalid value: "object": a is 1']
    assert check("self.a > 1", {"b": 1}, message="m") == ['spec: Invalid value: "object": no such key: a evaluating rule: m']


def test_transition_rules_run_where_something_stood_before():
    assert check("self == oldSelf", {"a": 2}) == []
    assert check("self == oldSelf", {"a": 2}, {"a": 1}, message="fixed") == ['spec: Invalid value: "object": fixed']
    listed = {"type": "object", "properties": {"l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
        "type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}, "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "falls"}]}}}}  # fmt: skip
    of = rules.Rules(listed)
    assert [str(e) for e in of.check({"l": [{"k": "b", "v": 1}, {"k": "a", "v": 1}]}, {"l": [{"k": "a", "v": 2}]})] == ['l[1]: Invalid value: "object": falls']


def test_names_are_escaped_and_numbers_are_numbers():
    of = {"type": "object", "properties": {"a-b": {"type": "string"}, "in": {"type": "integer"}, "x.y": {"type": "string"}, "n": {"type": "number"}}}
    assert check("self.a__dash__b == 'v' && self.__in__ == 1 && self.x__dot__y == 'w' && self.n == 2.0", {"a-b": "v", "in": 1, "x.y": "w", "n": 2}, of=of) == []
    assert rules.escaped("1x") is None


def test_evaluations_are_bounded(monkeypatch):
    monkeypatch.setattr(rules, "CHECKS_MAX", 10)
    of = rules.Rules(
        {"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= 0"}]}}}}
    )
    assert "cost budget" in str(of.check({"l": [1] * 50}, None)[-1])


def definition(name="things", kind="Thing", **names):
    return {
        "metadata": {"name": f"{name}.e.com"},
        "spec": {
            "group": "e.com",
            "names": {"plural": name, "singular": name[:-1], "kind": kind, "listKind": kind + "List", **names},
            "versions": [],
            "scope": "Namespaced",
        },
    }


def test_names_are_accepted_and_stay_until_given_up():
    first = definition(shortNames=["t"])
    status, names = crd.accept_names(first, [])
    assert names["plural"] == "things" and crd.is_true({"status": status}, "Established")
    first["status"] = status
    other = definition("others", "Other", shortNames=["t"])
    status, names = crd.accept_names(other, [first])
    assert names is None and crd.condition({"status": status}, "NamesAccepted")["message"] == '"t" is already in use'
    status, names = crd.accept_names(other, [])
    assert names["shortNames"] == ["t"]


def test_a_conditions_time_moves_with_its_status_only():
    class At:
        seconds = 0.0

        def now(self):
            return self.seconds

        monotonic = now

    at = At()
    previous = clock.use(at)
    try:
        one = crd.with_condition({}, "A", "True", "R", "m")
        at.seconds = 100.0
        same = crd.with_condition(one, "A", "True", "R2", "m2")
        assert same["conditions"][0]["lastTransitionTime"] == one["conditions"][0]["lastTransitionTime"] and same["conditions"][0]["reason"] == "R2"
        other = crd.with_condition(one, "A", "False", "R", "m")
        assert other["conditions"][0]["lastTransitionTime"] == "1970-01-01T00:01:40Z"
    finally:
        clock.use(previous)


def test_documents_of_a_definition_are_publishable():
    one = definition()
    version = {
        "name": "v1",
        "served": True,
        "subresources": {"status": {}, "scale": {}},
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": {"type": "object", "nullable": True, "properties": {"i": {"x-kubernetes-int-or-string": True}}}},
            }
        },
    }
    part = crd.openapi_part(one, version)
    assert "/apis/e.com/v1/namespaces/{namespace}/things/{name}/scale" in part["paths"] and "/apis/e.com/v1/things" in part["paths"]
    assert "nullable" not in orjson.dumps(part["definitions"]).decode()
    assert gnostic.document(part)
    assert schema.from_openapi(version["schema"]["openAPIV3Schema"]).properties["spec"].nullable
