"""Columns of custom resources: additionalPrinterColumns with their simple JSONPaths.

A path is what upstream's validation lets through: fields (`.spec.replicas`, `.metadata.labels.app\\.kubernetes\\.io/name`, `['a.b']`), indexes
(`[0]`, `[-1]`), all elements (`[*]`), and filters by equality (`[?(@.type=="Ready")]`). The first value found is the cell.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable
from typing import Any

import orjson

from fastkube.api.tables.model import Cells, Column, Object, Printer, columns, name_of, since

Step = Callable[[list[Any]], list[Any]]

_FIELD = re.compile(r"\.((?:\\.|[^.\[\\])+)")
_QUOTED = re.compile(r"\[(?:'((?:\\.|[^'\\])*)'|\"((?:\\.|[^\"\\])*)\")\]")
_INDEX = re.compile(r"\[(-?\d+)\]")
_ALL = re.compile(r"\[\*\]|\.\*")
_FILTER = re.compile(r"\[\?\(\s*@((?:\.(?:\\.|[^.\[\\=!<>\s])+)+)\s*(==|!=|<=|>=|<|>)\s*(\"[^\"]*\"|'[^']*'|[^)\s]+)\s*\)\]")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
PATHS_MAX = 4096  # compiled paths that are remembered


@functools.lru_cache(maxsize=PATHS_MAX)
def compile_path(path: str) -> tuple[Step, ...]:
    """The steps of a JSONPath. ValueError when it is none that we read."""
    text = path.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = text.removeprefix("$")
    if text and text[0] not in ".[":
        text = "." + text
    steps: list[Step] = []
    at = 0
    while at < len(text):
        for pattern, make in _GRAMMAR:
            m = pattern.match(text, at)
            if m:
                steps.append(make(m))
                at = m.end()
                break
        else:
            raise ValueError(f"unrecognized character in JSONPath at {text[at:]!r}")
    return tuple(steps)


def find(path: str, obj: Any) -> list[Any]:
    """All values at `path`."""
    values = [obj]
    for step in compile_path(path):
        values = step(values)
    return values


def _field(name: str) -> Step:
    return lambda values: [v[name] for v in values if isinstance(v, dict) and name in v]


def _index(at: int) -> Step:
    return lambda values: [v[at] for v in values if isinstance(v, list) and -len(v) <= at < len(v)]


def _all(values: list[Any]) -> list[Any]:
    return [item for v in values for item in (v if isinstance(v, list) else v.values() if isinstance(v, dict) else ())]


def _filter(path: str, op: str, literal: str) -> Step:
    if literal[0] in "\"'":
        wanted: Any = literal[1:-1]
    else:
        try:
            wanted = orjson.loads(literal)
        except orjson.JSONDecodeError:
            wanted = literal

    compare = _OPERATORS[op]
    ordered = op not in ("==", "!=")

    def holds(item: Any) -> bool:
        return any(compare(v, wanted) for v in find(path, item) if not ordered or (type(v) is type(wanted) and isinstance(v, (str, int, float))))

    return lambda values: [item for item in _all(values) if holds(item)]


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


_GRAMMAR: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Step]], ...] = (
    (_ALL, lambda m: _all),
    (_FIELD, lambda m: _field(_unescaped(m[1]))),
    (_QUOTED, lambda m: _field(_unescaped(m[1] if m[1] is not None else m[2]))),
    (_INDEX, lambda m: _index(int(m[1]))),
    (_FILTER, lambda m: _filter(m[1], m[2], m[3])),
)


def _cell(type_: str, value: Any) -> Any:
    if value is None:
        return None
    if type_ == "string":
        if isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        return orjson.dumps(value).decode()
    if type_ == "date":
        return since(value) if isinstance(value, str) else None
    if type_ == "boolean":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if type_ == "integer" else value


def printer(definitions: list[Object] | None) -> Printer:
    """The printer of a version of a custom resource; `definitions` are its additionalPrinterColumns (none: its age)."""
    definitions = definitions or [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]
    shown = [Column(d["name"], d.get("type", "string"), d.get("format", ""), d.get("priority", 0), d.get("description", "")) for d in definitions]
    paths = [(d.get("type", "string"), d["jsonPath"]) for d in definitions]

    def cells(obj: Object) -> Cells:
        out: Cells = [name_of(obj)]
        for type_, path in paths:
            values = find(path, obj)
            out.append(_cell(type_, values[0]) if values else None)
        return out

    return Printer((*columns("Name"), *shown), cells)
