"""No rule breaks down over what a client can send: recorded objects, changed at random places to values of the right and of the wrong types,
are created, updated and given a status; the answer is an object or an ApiError, and what was taken is taken again unchanged."""

import copy
import json
import random
from functools import partial

import pytest

from fastkube.api import codec, convert, kinds, meta, schema
from fastkube.api.errors import ApiError, invalid
from tests.api import oracle

pytestmark = pytest.mark.skipif(not oracle.REFERENCE.exists(), reason="the recording lies in ../shared")

CASES = 1500
TEXTS = ("", "a", "A_b", "x" * 300, "a.b/c", "*", "0", "-1", "1.2.3.4", "::1", "10.0.0.0/8", "a=b", "Always", "http://x/", "metadata.labels['a']",
         "100%", "1Gi", "*.a.b", "é", "TCP", "@every 1m", "* * * * *", "../x", "/abs", "a:b", "$(X)", "{", "object.x > 1")  # fmt: skip
NUMBERS = (0, 1, -1, 80, 65535, 70000, 2**31 - 1, -(2**31))
FORMATS = {"quantity": ("1", "0", "-1", "1Gi", "0.5m", "1e30", 3), "byte": ("", "YQ=="), "date-time": ("2030-01-01T00:00:00Z",),
           "micro-time": ("2030-01-01T00:00:00.000000Z",)}  # fmt: skip
WRONG = (1, -1, 1.5, "", "x", True, None, [], {}, [[]], [None], {"": None}, {"a": {}}, [1, "x"], 2**70)


def value(node, rng, wrong, depth=0):
    """Something for a place of this type."""
    if rng.random() < wrong:
        return copy.deepcopy(rng.choice(WRONG))
    if node.int_or_string:
        return rng.choice((0, -1, 80, "50%", "http", "-5%", "200%"))
    if node.format in FORMATS:
        return rng.choice(FORMATS[node.format])
    if node.type == "string":
        return rng.choice(TEXTS)
    if node.type in ("integer", "number"):
        return rng.choice(NUMBERS)
    if node.type == "boolean":
        return rng.random() < 0.5
    if node.type == "array":
        items = [value(node.items, rng, wrong, depth + 1) for _ in range(rng.choice((0, 1, 2)) if depth < 7 else 0)]
        return items + copy.deepcopy(items[: rng.random() < 0.2])
    if node.additional is not None:
        return {rng.choice(TEXTS): value(node.additional, rng, wrong, depth + 1) for _ in range(rng.choice((0, 1, 2)) if depth < 7 else 0)}
    share = rng.choice((0.05, 0.2, 0.6)) if depth < 8 else 0
    return {k: value(n, rng, wrong, depth + 1) for k, n in (node.properties or {}).items() if rng.random() < share}


def places(node, here):
    """(holder, key, type) of everything that is there or could be."""
    if isinstance(here, dict):
        for key in sorted({*(node.properties or ()), *here}):
            child = (node.properties or {}).get(key, node.additional)
            if child is not None:
                yield here, key, child
                yield from places(child, here.get(key))
    elif isinstance(here, list) and node.items is not None:
        for i, item in enumerate(here):
            yield here, i, node.items
            yield from places(node.items, item)


def changed(body, node, rng, wrong):
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 2, 4))):
        found = [(h, k, n) for h, k, n in places(node, body) if k not in ("apiVersion", "kind") and not (h is body and k == "metadata")]
        there = [p for p in found if isinstance(p[1], int) or p[1] in p[0]]
        holder, key, child = rng.choice(there if there and rng.random() < 0.5 else found)
        if rng.random() < 0.2 and isinstance(holder, dict):
            holder.pop(key, None)
        else:
            holder[key] = value(child, rng, wrong)
    return body


def status_update(resource, namespace, name, body, old):
    obj, _ = codec.read(json.dumps(body).encode(), "application/json", resource.group, resource.version, resource.kind, validation="Ignore")
    obj, rules = convert.to_storage(resource, obj), kinds.of(*convert.storage_kind(resource))
    rules.default(obj)
    meta.prepare_update(obj, old, namespace, resource.namespaced)
    rules.prepare_status(obj, old)
    rules.fields(obj)
    if found := meta.validate_update(obj, old) + rules.validate_status(obj, old):
        raise invalid(resource.kind, rules.error_group, name, found)


@pytest.fixture(scope="module")
def bases():
    """(resource, namespace, what a client sends, what is stored of it) of every recorded object that was taken."""
    found = {}
    for case in oracle.cases():
        body, path = (case["body"], case["path"]) if case["method"] == "POST" else (case["setup"], case["path"].split("?")[0].rpartition("/")[0])
        if (case["method"] == "PUT" or case["code"] == 201) and body.get("metadata", {}).get("name"):
            found.setdefault(json.dumps(body, sort_keys=True), (*oracle.find(path)[:2], body))
    # Regular expressions in the schemas of custom resources are checked elsewhere.
    found = [f for f in found.values() if f[0].plural != "customresourcedefinitions"]
    return [(*f, {**(old := oracle.create(*f, "Ignore")[0]), "metadata": {**old["metadata"], "resourceVersion": "1"}}) for f in found]


@pytest.mark.parametrize("wrong", [0, 0.3], ids=["right types", "wrong types"])
@pytest.mark.parametrize("seed", range(2))
def test_answered_whatever_it_is(bases, wrong, seed):
    rng = random.Random(seed)
    answers = {"taken": 0, 400: 0, 422: 0}
    for _ in range(CASES):
        resource, namespace, body, old = rng.choice(bases)
        node = schema.of(resource.group, resource.version, resource.kind)
        body, name = changed(body, node, rng, wrong), old["metadata"]["name"]
        validation = rng.choice(("Ignore", "Strict"))
        attempts = [partial(oracle.create, resource, namespace, body, validation)]
        if isinstance(body.get("metadata"), dict):
            body["metadata"]["name"] = name
            attempts.append(partial(oracle.update, resource, namespace, name, body, copy.deepcopy(old), validation))
            if "status" in node.properties:
                body = {**body, "status": value(node.properties["status"], rng, wrong)}
                attempts.append(partial(status_update, resource, namespace, name, body, copy.deepcopy(old)))
        for attempt in attempts:
            try:
                attempt()
                answers["taken"] += 1
            except ApiError as e:
                answers[e.code] += 1
                assert json.dumps(e.status())
            except Exception as e:
                raise AssertionError(f"{resource.kind} {validation} {json.dumps(body)[:3000]}") from e
    assert all(answers.values())


def test_what_was_taken_is_taken_again(bases):
    rng = random.Random(7)
    taken = 0
    for _ in range(CASES):
        resource, namespace, body, _ = rng.choice(bases)
        body = changed(body, schema.of(resource.group, resource.version, resource.kind), rng, 0)
        try:
            first, _ = oracle.create(resource, namespace, body, "Ignore")
        except ApiError:
            continue
        if resource.kind == "Pod":
            continue  # what the harness adds to a pod it does not find again
        first["metadata"]["resourceVersion"] = "1"
        sent = convert.from_storage(resource, copy.deepcopy(first))
        try:
            again, _ = oracle.update(resource, namespace, first["metadata"]["name"], sent, copy.deepcopy(first), "Strict")
        except ApiError as e:
            raise AssertionError(f"{resource.kind} {e.message[:2000]} {json.dumps(body)[:2000]}") from e
        assert again == first, (resource.kind, body)
        taken += 1
    assert taken > CASES // 4
