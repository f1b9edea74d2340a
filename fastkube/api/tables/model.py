"""What a table is made of: columns as data, rows by a function of the object, and the cells' common forms.

Columns, their order and the cells' texts are what kubectl shows its users (pkg/printers/internalversion of upstream).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fastkube.runtime import clock

Object = dict[str, Any]
Cells = list[Any]

NONE, UNSET, UNKNOWN = "<none>", "<unset>", "<unknown>"

_DESCRIPTIONS = {
    "Name": "Name of the object, unique among its kind within a namespace.",
    "Age": "Time since the object was created.",
    "Created At": "Time at which the object was created.",
    "Containers": "Names of each container in the template.",
    "Images": "Images referenced by each container in the template.",
    "Selector": "Label selector of what the object is for.",
    "Ready": "How much of it is ready.",
    "Status": "Summary of the current state.",
    "Restarts": "How often its containers restarted, and when last.",
    "IP": "Address of the pod.",
    "Node": "Node it is bound to.",
    "Nominated Node": "Node it is to be bound to once what it preempts is gone.",
    "Readiness Gates": "How many of its readiness gates are open.",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One of metav1's TableColumnDefinition; priority 1 is shown by -o wide only."""

    name: str
    type: str = "string"
    format: str = ""
    priority: int = 0
    description: str = ""

    def definition(self) -> Object:
        description = self.description or _DESCRIPTIONS.get(self.name, self.name)
        return {"name": self.name, "type": self.type, "format": self.format, "description": description, "priority": self.priority}


def columns(text: str) -> tuple[Column, ...]:
    """`"Name|Desired:integer|+Node"` -> columns; Name has format "name", + is priority 1."""
    out = []
    for part in text.split("|"):
        name, _, type_ = part.partition(":")
        wide = name.startswith("+")
        name = name.removeprefix("+")
        out.append(Column(name, type_ or "string", "name" if name in ("Name", "Attacher") else "", int(wide)))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Printer:
    """How objects of one kind are shown. `conditions` are a row's (Completed), for the few kinds that have them."""

    columns: tuple[Column, ...]
    cells: Callable[[Object], Cells]
    conditions: Callable[[Object], list[Object] | None] | None = field(default=None)


def get(obj: Any, *path: str, default: Any = None) -> Any:
    """The value at a path of field names; `default` where something on the way is absent or null."""
    for name in path:
        if not isinstance(obj, dict):
            return default
        obj = obj.get(name)
    return default if obj is None else obj


def name_of(obj: Object) -> str:
    return get(obj, "metadata", "name", default="")


def age(obj: Object) -> str:
    return since(get(obj, "metadata", "creationTimestamp"))


def since(time: str | None) -> str:
    """Time since an RFC 3339 time, as people read it."""
    if not time:
        return UNKNOWN
    try:
        return duration(clock.now() - clock.parse(time))
    except ValueError:
        return "<invalid>"


def duration(seconds: float) -> str:
    """Two significant units at most: 59s, 3m20s, 5h12m, 3d4h, 1y20d (k8s.io/apimachinery duration.HumanDuration)."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 0:
        return "0s"
    if whole < 120:
        return f"{whole}s"
    minutes, hours = whole // 60, whole // 3600
    days = hours // 24
    if minutes < 10:
        return _two(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return _two(days, "d", hours % 24, "h")
    if hours < 24 * 365 * 2:
        return f"{days}d"
    if hours < 24 * 365 * 8:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(major: int, unit: str, minor: int, lesser: str) -> str:
    return f"{major}{unit}{minor}{lesser}" if minor else f"{major}{unit}"


def joined(items: Iterable[Any], empty: str = NONE, separator: str = ",") -> str:
    return separator.join(str(i) for i in items) or empty


def some(items: list[str], most: int = 3, count: int | None = None) -> str:
    """The first `most`, and how many more there are of `count`."""
    count = len(items) if count is None else count
    text = ",".join(items[:most])
    return f"{text} + {count - most} more..." if len(items) > most else text


def labels(of: dict[str, str] | None) -> str:
    return joined(f"{k}={v}" for k, v in sorted((of or {}).items()))


def selector(of: Object | None, empty: str = NONE) -> str:
    """A metav1.LabelSelector as kubectl takes it: `app=web,tier in (a,b),!old`."""
    of = of or {}
    parts = [(k, f"{k}={v}") for k, v in (of.get("matchLabels") or {}).items()]
    for e in of.get("matchExpressions") or ():
        key, values = e.get("key", ""), ",".join(sorted(e.get("values") or ()))
        text = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": key, "DoesNotExist": f"!{key}"}.get(
            e.get("operator", ""), "<invalid>"
        )
        parts.append((key, text))
    return joined((text for _, text in sorted(parts, key=lambda p: p[0])), empty)


def containers(spec: Object | None) -> tuple[str, str]:
    """-> (names, images) of a pod spec's containers."""
    of = (spec or {}).get("containers") or []
    return ",".join(c.get("name", "") for c in of), ",".join(c.get("image", "") for c in of)


def condition(obj: Object, type_: str) -> Object | None:
    """The condition of that type in status.conditions."""
    return next((c for c in get(obj, "status", "conditions", default=()) if c.get("type") == type_), None)


def true(obj: Object, type_: str) -> bool:
    return (condition(obj, type_) or {}).get("status") == "True"


def yes(value: bool | None) -> str:
    return UNSET if value is None else "True" if value else "False"
