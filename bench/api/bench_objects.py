"""What one write costs in `fastkube.api`: decode, walk, default, prepare, validate, encode of a 5 KB pod; and its parts.

Floor (issue 2): decode + walk + default + validate of a 5 KB pod within 100 us.
"""

from __future__ import annotations

import orjson

from bench.api.pods import BODY, pod
from fastkube.api import codec, kinds, meta, schema

RULES = kinds.of("", "Pod")
NODE = schema.of("", "v1", "Pod")


def _read() -> dict:
    obj, _ = codec.read(BODY, "application/json", "", "v1", "Pod")
    return obj


def _ready() -> dict:
    obj = _read()
    RULES.default(obj)
    meta.prepare_create(obj, "shop", True)
    RULES.prepare_create(obj)
    return obj


def test_create(benchmark):
    """Everything between the body and the bytes for the store."""

    def run() -> None:
        obj = _ready()
        meta.fill_create(obj, "2026-11-20T00:00:00Z", "2b4f9a0e-64c3-4f7c-9d4b-1b5a2f9a7c11", "")
        assert not meta.validate_create(RULES, obj, True) + RULES.validate_create(obj)
        RULES.warnings(obj)
        codec.encode(obj)

    benchmark(run)


def test_loads(benchmark):
    """For comparison: orjson alone."""
    benchmark(orjson.loads, BODY)


def test_read(benchmark):
    benchmark(_read)


def test_walk(benchmark):
    benchmark.pedantic(lambda obj: schema.decode(NODE, obj), setup=lambda: ((orjson.loads(BODY),), {}), rounds=3000)


def test_default(benchmark):
    benchmark.pedantic(RULES.default, setup=lambda: ((_read(),), {}), rounds=3000)


def test_validate(benchmark):
    obj = _ready()
    benchmark(lambda: meta.validate_create(RULES, obj, True) + RULES.validate_create(obj))


def test_warnings(benchmark):
    obj = _ready()
    benchmark(lambda: RULES.warnings(obj))


def test_encode(benchmark):
    obj = _ready()
    benchmark(codec.encode, obj)


def test_metadata_of_stored_bytes(benchmark):
    stored = codec.encode(_ready())[0]
    benchmark(codec.metadata_of, stored)


def test_schema_of_a_kind_seen_first(benchmark):
    """The nodes of Pod from the loaded table: paid once, at the first pod."""

    def build() -> None:
        schema._fields.cache_clear()
        schema.definition.cache_clear()
        schema.of.cache_clear()
        schema.decode(schema.of("", "v1", "Pod"), pod())

    benchmark(build)
