"""From what is programmed to what should be, in the fewest steps; pure.

`Programmed` remembers what the kernel was told. `plan` takes the new rules of the services that changed and returns one `Change`
per frontend whose packets go elsewhere from now on: the same rules again plan nothing. Laws:
- a frontend that two services claim (the same external IP and port) belongs to the one that claimed first; the next inherits it;
- backends keep their positions: when k of n are replaced, k positions change (kernel maps are keyed by position);
- applying every change of every plan in order yields exactly `live`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fastkube.proxy.model import Backend, Frontend, Key, Rules, Target


class Change(NamedTuple):
    """`old` None: the frontend is new; `new` None: it goes."""

    frontend: Frontend
    old: Target | None
    new: Target | None


class Programmed:
    def __init__(self) -> None:
        self.rules: dict[Key, Rules] = {}
        self.claims: dict[Frontend, list[Key]] = {}  # first come, first served
        self.live: dict[Frontend, Target] = {}

    def plan(self, rules: dict[Key, Rules]) -> list[Change]:
        """Take over the new rules of the given services (empty: gone); returns what that changes."""
        touched: dict[Frontend, None] = {}
        for key, new in rules.items():
            old = self.rules.get(key, {})
            for frontend in old.keys() - new.keys():
                self._release(frontend, key)
                touched[frontend] = None
            for frontend, target in new.items():
                if frontend not in old:
                    self.claims.setdefault(frontend, []).append(key)
                if old.get(frontend) != target:
                    touched[frontend] = None
            if new:
                self.rules[key] = new
            else:
                self.rules.pop(key, None)
        return [change for frontend in touched if (change := self._settle(frontend))]

    def everything(self) -> list[Change]:
        """All that is live, as changes from nothing: what a kernel that knows nothing must be told."""
        return [Change(frontend, None, target) for frontend, target in self.live.items()]

    def _release(self, frontend: Frontend, key: Key) -> None:
        claims = self.claims[frontend]
        claims.remove(key)
        if not claims:
            del self.claims[frontend]

    def _settle(self, frontend: Frontend) -> Change | None:
        claims = self.claims.get(frontend)
        old = self.live.get(frontend)
        if not claims:
            self.live.pop(frontend, None)
            return Change(frontend, old, None) if old else None
        new = keep_positions(old, self.rules[claims[0]][frontend])
        self.live[frontend] = new
        return Change(frontend, old, new) if new != old else None


def keep_positions(old: Target | None, new: Target) -> Target:
    """`new` with those backends that `old` has at their old positions."""
    if old is None:
        return new
    outside = new.outside and in_place(old.outside or (), new.outside)
    return new._replace(backends=in_place(old.backends, new.backends), outside=outside)


def in_place(old: tuple[Backend, ...], new: tuple[Backend, ...]) -> tuple[Backend, ...]:
    """A permutation of `new` that differs from `old` in as few positions as can be."""
    wanted = dict.fromkeys(new)
    slots: list[Backend | None] = [b if b in wanted else None for b in old]
    kept = {b for b in slots if b is not None}
    fresh = [b for b in new if b not in kept]
    # Backends beyond the new length move, like fresh ones, into the holes before it.
    fresh += [b for b in slots[len(new) :] if b is not None]
    slots = slots[: len(new)] + [None] * (len(new) - len(slots))
    supply = iter(fresh)
    return tuple(b if b is not None else next(supply) for b in slots)


Reach = dict[Frontend, frozenset[tuple[str, int]]]  # the (address, port) pairs that a frontend's flows may go to


def udp_reach(changes: Iterable[Change]) -> Reach:
    """The UDP frontends whose tracked flows need a look, with where they may go now.

    UDP has no end that the kernel could see: flows to backends that left, and those let through while there was none, would be
    followed for as long as packets come. TCP ends by itself.
    """
    out: Reach = {}
    for frontend, old, new in changes:
        before, after = _reachable(old), _reachable(new)
        if frontend.protocol == "udp" and (not before or before - after):
            out[frontend] = frozenset(after)
    return out


def _reachable(target: Target | None) -> set[tuple[str, int]]:
    return {(b.ip, b.port) for b in (*target.backends, *(target.outside or ()))} if target else set()
