"""Tables: what `kubectl get` shows, made by the server (Accept: application/json;as=Table;g=meta.k8s.io;v=v1).

`printer(resource)` says how a kind is shown; `render` makes the Table of stored objects. Objects come as their stored bytes: each is decoded for
its cells, and what a row carries of it (`includeObject`) is cut out of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from fastkube._ext.scan import find
from fastkube.api.resources import Resource
from fastkube.api.tables import cluster, core, custom, workloads
from fastkube.api.tables.model import Column, Object, Printer, columns, duration, get, name_of

__all__ = ["Column", "Printer", "custom", "duration", "printer", "render"]

_PRINTERS = core.PRINTERS | workloads.PRINTERS | cluster.PRINTERS
_DEFAULT = Printer(
    (*columns("Name"), Column("Created At", "date")), lambda o: [name_of(o), get(o, "metadata", "creationTimestamp")]
)  # kinds that upstream has no printer for

INCLUDE = ("None", "Metadata", "Object")


def printer(resource: Resource) -> Printer:
    """How objects of a built-in resource are shown (a custom one's: `custom.printer`)."""
    return of_kind(resource.group, resource.kind)


def of_kind(group: str, kind: str) -> Printer:
    return _PRINTERS.get((group, kind), _DEFAULT)


def render(
    shown_by: Printer, items: Iterable[bytes], include: str = "Metadata", *, list_meta: Object | None = None, version: str = "v1", headers: bool = True
) -> bytes:
    """The Table of `items`, JSON objects as bytes, as JSON.

    `include` is the includeObject option: what of an object its row carries. `list_meta` is the table's metadata (resourceVersion, continue,
    remainingItemCount); None takes the resourceVersion of the last item. A watch sends `headers` in its first event only.
    """
    api_version = f"meta.k8s.io/{version}"
    head = f'{{"kind":"PartialObjectMetadata","apiVersion":"{api_version}","metadata":'.encode()
    rows = []
    revision = ""
    for raw in items:
        obj = orjson.loads(raw)
        row: Object = {"cells": shown_by.cells(obj)}
        if shown_by.conditions is not None and (conditions := shown_by.conditions(obj)):
            row["conditions"] = conditions
        if include == "Object":
            row["object"] = orjson.Fragment(raw)
        elif include == "Metadata":
            row["object"] = orjson.Fragment(head + (find(raw, (b"metadata",)) or b"{}") + b"}")
        rows.append(row)
        revision = get(obj, "metadata", "resourceVersion", default="")
    if list_meta is None:
        list_meta = {"resourceVersion": revision} if revision else {}
    definitions = [c.definition() for c in shown_by.columns] if headers else None
    return orjson.dumps({"kind": "Table", "apiVersion": api_version, "metadata": list_meta, "columnDefinitions": definitions, "rows": rows})
