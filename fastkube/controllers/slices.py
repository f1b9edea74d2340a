"""How a Service's endpoints are laid out over EndpointSlices: pure (k8s.io/endpointslice reconciler).

A `Layout` is the slices of one Service as last known, with an index from each endpoint to its slice, so that one pod's change is one look-up
and one changed slice, however many endpoints there are. `apply` takes the changes and returns which slices to write:

1. An endpoint that is there stays in its slice; a changed one is replaced there, a vanished one taken out.
2. New ones fill slices that are written anyway, then the fullest slice that has room for them, then new slices.
3. An empty slice is deleted; a Service without any endpoint keeps one empty slice per address type, so that watchers know that it has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fastkube.controllers.meta import Object

Ports = tuple[tuple[tuple[str, str | int | None], ...], ...]  # the ports of a slice, canonical and hashable
Group = tuple[str, Ports]  # address type and ports: endpoints of one group may share slices


def canonical(ports: Iterable[Object] | None) -> Ports:
    items = [tuple(sorted((k, v) for k, v in port.items() if v is not None)) for port in ports or ()]
    return tuple(sorted(items, key=repr))


def ports_of(group: Group) -> list[Object]:
    return [dict(port) for port in group[1]]


@dataclass(slots=True)
class Slice:
    name: str  # "" until the server has named it
    group: Group
    endpoints: dict[str, Object]  # by pod key (or whatever tells endpoints apart)


@dataclass(slots=True)
class Plan:
    create: list[Slice] = field(default_factory=list)
    update: list[Slice] = field(default_factory=list)
    delete: list[Slice] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.create or self.update or self.delete)


class Layout:
    def __init__(self, slices: Iterable[Slice] = ()) -> None:
        self.slices: list[Slice] = []
        self._home: dict[tuple[str, str], Slice] = {}  # (address type, pod key) -> its slice
        for one in slices:
            self.slices.append(one)
            for key in list(one.endpoints):
                self._home.setdefault((one.group[0], key), one)

    def __len__(self) -> int:
        return len(self._home)

    def keys(self) -> set[tuple[str, str]]:
        return set(self._home)

    def apply(self, changes: dict[tuple[str, str], tuple[Ports, Object] | None], families: list[str], size_max: int) -> Plan:
        """`changes`: (address type, pod key) -> (ports, endpoint), or None: it is gone. The layout is then as after the plan's writes."""
        touched: dict[int, Slice] = {}
        homeless: dict[Group, dict[str, Object]] = {}
        for (family, key), wanted in changes.items():
            home = self._home.get((family, key))
            if home is not None and wanted is not None and home.group[1] == wanted[0]:
                if home.endpoints[key] != wanted[1]:
                    home.endpoints[key] = wanted[1]
                    touched[id(home)] = home
                continue
            if home is not None:
                del home.endpoints[key], self._home[family, key]
                touched[id(home)] = home
            if wanted is not None:
                homeless.setdefault((family, wanted[0]), {})[key] = wanted[1]
        created: list[Slice] = []
        for group, endpoints in homeless.items():
            self._house(group, endpoints, size_max, touched, created)
        plan = Plan(create=created)
        self._tidy(touched, plan, families)
        return plan

    def _house(self, group: Group, endpoints: dict[str, Object], size_max: int, touched: dict[int, Slice], created: list[Slice]) -> None:
        waiting = list(endpoints.items())
        for one in [s for s in touched.values() if s.group == group]:
            waiting = self._fill(one, waiting, size_max)
        while waiting:
            # the fullest slice that takes all that is left (an empty one, the placeholder, included), else a new one
            fits = [s for s in self.slices if s.group == group and len(s.endpoints) + len(waiting) <= size_max]
            empty = [s for s in self.slices if s.group[0] == group[0] and not s.endpoints and id(s) not in touched]
            if fits:
                one = max(fits, key=lambda s: len(s.endpoints))
            elif empty:
                one = empty[0]
            else:
                one = Slice("", group, {})
                self.slices.append(one)
                created.append(one)
            one.group = group
            if one not in created:
                touched[id(one)] = one
            waiting = self._fill(one, waiting, size_max)

    def _fill(self, one: Slice, waiting: list[tuple[str, Object]], size_max: int) -> list[tuple[str, Object]]:
        room = max(size_max - len(one.endpoints), 0)
        for key, endpoint in waiting[:room]:
            one.endpoints[key] = endpoint
            self._home[one.group[0], key] = one
        return waiting[room:]

    def _tidy(self, touched: dict[int, Slice], plan: Plan, families: list[str]) -> None:
        for family in families:
            own = [s for s in self.slices if s.group[0] == family]
            if any(s.endpoints for s in own):
                continue
            if own:  # all empty: one stays as the placeholder
                keep = own[0]
                if keep.group[1]:
                    keep.group = (family, ())
                    touched[id(keep)] = keep
            else:
                keep = Slice("", (family, ()), {})
                self.slices.append(keep)
                plan.create.append(keep)
        placeholders = {id(next(s for s in self.slices if s.group[0] == f)) for f in families if not any(s.endpoints for s in self.slices if s.group[0] == f)}
        for one in list(self.slices):
            if not one.endpoints and id(one) not in placeholders:
                self.slices.remove(one)
                touched.pop(id(one), None)
                plan.delete.append(one)
        plan.update = [s for s in touched.values() if s.name]
