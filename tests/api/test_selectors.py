"""Selectors: parsing against upstream's grammar, matching against a plain model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkube.api import selectors
from fastkube.api.errors import ApiError


@pytest.mark.parametrize(
    "text, labels, selected",
    [
        ("", {}, True), ("a", {"a": "1"}, True), ("a", {}, False), ("!a", {}, True), ("!a", {"a": ""}, False), ("a=1", {"a": "1"}, True), ("a==1", {"a": "2"}, False),
        ("a!=1", {}, True), ("a!=1", {"a": "1"}, False), ("a in (1,2)", {"a": "2"}, True), ("a notin (1,2)", {}, True), ("a notin (1)", {"a": "1"}, False),
        ("a in (1), b", {"a": "1", "b": ""}, True), ("a=,b=2", {"a": "", "b": "2"}, True), ("a in ()", {"a": ""}, True), ("a in (,x)", {"a": ""}, True), ("n>3", {"n": "4"}, True),
        ("n<3", {"n": "x"}, False), ("n>3", {}, False), ("example.com/a=b", {"example.com/a": "b"}, True), ("a = 1 , b", {"a": "1", "b": ""}, True),
    ],
)  # fmt: skip
def test_labels(text, labels, selected):
    assert selectors.labels(text).matches(labels) is selected


@pytest.mark.parametrize(
    "text", ["a,", ",a", "a=b=c", "a b", "a in b", "a in (b", "!", "!!a", "=b", "a==", "a>x", "A@=b", "a=b!", "in", "a in (b c)", "a=" + "x" * 64, "(a)"]
)
def test_labels_refused(text):
    if text == "a==":  # an empty value is one
        assert selectors.labels(text).matches({"a": ""})
        return
    with pytest.raises(ApiError) as e:
        selectors.parse_labels(text)
    assert e.value.code == 400


keys, values = st.sampled_from(["a", "b", "c"]), st.sampled_from(["", "1", "2", "10"])
requirements = st.one_of(
    st.tuples(keys, st.sampled_from(["in", "notin"]), st.frozensets(values, min_size=1)),
    st.tuples(keys, st.sampled_from(["exists", "!"]), st.just(frozenset())),
    st.tuples(keys, st.sampled_from(["gt", "lt"]), st.sampled_from([frozenset({"1"}), frozenset({"5"})])),
)


def _holds(requirement, labels):
    key, operator, wanted = requirement
    value = labels.get(key)
    match operator:
        case "in":
            return value in wanted
        case "notin":
            return value is None or value not in wanted
        case "exists":
            return value is not None
        case "!":
            return value is None
    bound = int(next(iter(wanted)))
    if value is None or not value.isdigit():
        return False
    return int(value) > bound if operator == "gt" else int(value) < bound


@given(st.lists(requirements, max_size=70), st.dictionaries(keys, values))
def test_matching_is_the_model(listed, labels):
    selector = selectors.LabelSelector([selectors.Requirement(*r) for r in listed])
    assert selector.matches(labels) == all(_holds(r, labels) for r in listed)


@given(st.lists(requirements.filter(lambda r: r[1] not in ("gt", "lt")), max_size=4), st.dictionaries(keys, values))
def test_text_form_reads_back(listed, labels):
    selector = selectors.LabelSelector([selectors.Requirement(*r) for r in listed])
    assert selectors.labels(str(selector)).matches(labels) == selector.matches(labels)


def test_objects():
    of = selectors.from_object
    assert not of(None).matches({"a": "1"})
    assert of({}).matches({}) and of({}).empty
    selector = of(
        {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "DoesNotExist"}, {"key": "c", "operator": "In", "values": ["x", "y"]}]}
    )
    assert selector.matches({"a": "1", "c": "y"}) and not selector.matches({"a": "1", "b": "", "c": "y"})
    assert str(selector) == "a=1,!b,c in (x,y)"
    with pytest.raises(ValueError):
        of({"matchExpressions": [{"key": "a", "operator": "Near"}]})


def test_exact():
    assert selectors.labels("a=1,b").exact("a") == "1"
    assert selectors.labels("a in (1,2)").exact("a") is None


@pytest.mark.parametrize(
    "text, fields, selected",
    [
        ("spec.nodeName=n1", {"spec.nodeName": "n1"}, True), ("spec.nodeName==n1", {"spec.nodeName": "n2"}, False), ("status.phase!=Running", {"status.phase": "Pending"}, True),
        ("spec.nodeName=", {}, True), ("spec.nodeName!=", {}, False), ("a=b\\,c", {"a": "b,c"}, True), ("a=b,c=d", {"a": "b", "c": "d"}, True), ("a=b\\=c", {"a": "b=c"}, True),
    ],
)  # fmt: skip
def test_fields(text, fields, selected):
    assert selectors.fields(text).matches(fields) is selected


@pytest.mark.parametrize("text", ["a", "a=b=c", "a=b\\x", "spec.other=1"])
def test_fields_refused(text):
    with pytest.raises(ApiError) as e:
        selectors.parse_fields(text, ("spec.nodeName",))
    assert e.value.code == 400
