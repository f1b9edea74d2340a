"""The nftables driver: one change of Services is one transaction of element adds and deletes; a restart is one transaction too.

Laws:
- a transaction is all or nothing (the kernel's own promise), so no packet ever sees half a service;
- `replace` puts the whole state in place of whatever was there, in one transaction: nothing stale stays, no live rule is missing for a
  moment, and clients' session affinity lives on (only a table of another layout version is dropped as a whole);
- after a failed transaction the caller replaces.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence

from fastkube.proxy.diff import Change
from fastkube.proxy.layout import TABLE, Address, ElementKey, Elements, Lane, Layout, Value, lanes_of
from fastkube.runtime import logs

log = logs.get("proxy.nftables")

DYNAMIC = ("affinity", "node-affinity")  # filled by packets, never by us


class NftError(RuntimeError):
    """nft refused; the message is its own."""


class Transaction:
    """Element changes of one family, collected; `text` is what nft is given."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.structure: list[str] = []
        self.deletes: dict[str, list[str]] = {}
        self.adds: dict[str, list[str]] = {}

    def define(self, parts: dict[str, str]) -> None:
        """Create sets, maps and chains, or give those that exist these rules."""
        at = f"{self.layout.nft} {TABLE}"
        for part, body in parts.items():
            kind, name = part.split(" ")
            if kind != "chain":
                self.structure.append(f"add {kind} {at} {name} {{ {body} }}")
            else:
                hook, rules = (body.split(";", 1)) if body.startswith("type ") else ("", body)
                self.structure.append(f"add chain {at} {name}" + (f" {{ {hook}; }}" if hook else ""))
                self.structure.append(f"flush chain {at} {name}")
                self.structure += [f"add rule {at} {name} {rule.strip()}" for rule in split_rules(rules)]

    def delete(self, element: ElementKey) -> None:
        self.deletes.setdefault(element[0], []).append(key_text(element[1]))

    def add(self, element: ElementKey, value: Value) -> None:
        text = key_text(element[1])
        self.adds.setdefault(element[0], []).append(text if value is None else f"{text} : {value_text(value)}")

    def text(self) -> str:
        at = f"{self.layout.nft} {TABLE}"
        lines = list(self.structure)
        for verb, groups in (("delete", self.deletes), ("add", self.adds)):
            lines += [f"{verb} element {at} {name} {{ {', '.join(items)} }}" for name, items in groups.items()]
        return "\n".join(lines) + "\n" if lines else ""


def split_rules(text: str) -> list[str]:
    return [rule for rule in (part.strip() for part in text.split(";")) if rule]


def key_text(key: Sequence[str | int]) -> str:
    return " . ".join(map(str, key))


def value_text(value: Value) -> str:
    if isinstance(value, Lane):
        return f"goto {value.name}"
    if isinstance(value, Address):
        return f"{value.ip} . {value.port}"
    return str(value)


class Table:
    """What one family's table holds, and the transactions that change it; pure."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.live: Elements = {}
        self.owners: Counter[ElementKey] = Counter()  # hairpin elements are shared
        self.lanes: set[Lane] = set(layout.standing)

    def change(self, changes: Iterable[Change]) -> str:
        transaction = Transaction(self.layout)
        before: dict[ElementKey, tuple[bool, Value]] = {}  # of each element touched: was it there, with which value
        for frontend, old, new in changes:
            if not self.layout.covers(frontend):
                continue
            was = self.layout.elements(frontend, old) if old else {}
            now = self.layout.elements(frontend, new) if new else {}
            for lane in sorted(lanes_of(now)):
                self._define(transaction, lane)
            for element in was.keys() | now.keys():
                if element in was and element in now and was[element] == now[element]:
                    continue
                before.setdefault(element, (element in self.live, self.live.get(element)))
                self.owners[element] += (element in now) - (element in was)
                if self.owners[element]:
                    self.live[element] = now.get(element, self.live.get(element))
                else:
                    del self.owners[element]
                    self.live.pop(element, None)
        for element, was_there in before.items():
            is_there = (element in self.live, self.live.get(element))
            if was_there != is_there:
                if was_there[0]:
                    transaction.delete(element)
                if is_there[0]:
                    transaction.add(element, is_there[1])
        return transaction.text()

    def replace(self, changes: Iterable[Change], present: set[str]) -> str:
        """The text that makes the table hold exactly `changes` (all from nothing). `present`: `map NAME`, `set NAME`, `chain NAME` now there."""
        self.live, self.owners, self.lanes = {}, Counter(), set(self.layout.standing)
        at = f"{self.layout.nft} {TABLE}"
        start = [f"add table {at}"]
        if present and f"chain {self.layout.version}" not in present:
            start += [f"delete table {at}", f"add table {at}"]
            present = set()
        base = Transaction(self.layout)
        base.define(self.layout.base())
        for part in sorted(present):
            kind, name = part.split(" ")
            if kind != "chain" and name not in DYNAMIC:
                start.append(f"flush {kind} {at} {name}")
        filled = self.change(changes)
        wanted = self.layout.base().keys() | {f"chain {lane.name}" for lane in self.lanes}
        unused = [f"{verb} {part.replace(' ', f' {at} ')}" for verb in ("flush", "delete") for part in sorted(present - wanted) if part.startswith("chain ")]
        return "\n".join(start) + "\n" + base.text() + "".join(f"{line}\n" for line in unused) + filled

    def _define(self, transaction: Transaction, lane: Lane) -> None:
        if lane not in self.lanes:
            self.lanes.add(lane)
            transaction.define({f"chain {lane.name}": self.layout.lane_body(lane)})


class Nft:
    """Runs nft. `argv`: the command, for tests with `ip netns exec NS` before it."""

    def __init__(self, argv: Sequence[str] = ("nft",)) -> None:
        self.argv = tuple(argv)

    async def run(self, text: str) -> None:
        if text:
            await self._call("-f", "-", input=text)

    async def present(self, family: str) -> set[str]:
        """What our table holds, by kind and name; empty when there is no table."""
        try:
            listed = json.loads(await self._call("-j", "-t", "list", "table", family, TABLE))
        except NftError as e:
            if "No such file" in str(e):
                return set()
            raise
        return {f"{kind} {item['name']}" for entry in listed["nftables"] for kind, item in entry.items() if kind in ("map", "set", "chain")}

    async def delete(self, family: str) -> None:
        await self.run(f"add table {family} {TABLE}\ndelete table {family} {TABLE}\n")

    async def _call(self, *args: str, input: str = "") -> str:
        process = await asyncio.create_subprocess_exec(
            *self.argv, *args, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate(input.encode())
        if process.returncode:
            raise NftError(err.decode(errors="replace").strip()[:2000])
        return out.decode()


class NftablesDriver:
    """Programs Services through nftables, one table per address family in use."""

    mode = "nftables"

    def __init__(self, layouts: Iterable[Layout], nft: Nft | None = None) -> None:
        self.tables = [Table(layout) for layout in layouts]
        self.nft = nft or Nft()

    async def replace(self, changes: Iterable[Change]) -> None:
        """Program exactly this, whatever is there."""
        changes = list(changes)
        text = [table.replace(changes, await self.nft.present(table.layout.nft)) for table in self.tables]
        await self.nft.run("".join(text))

    async def change(self, changes: Iterable[Change]) -> None:
        changes = list(changes)
        await self.nft.run("".join(table.change(changes) for table in self.tables))

    async def cleanup(self) -> None:
        for table in self.tables:
            await self.nft.delete(table.layout.nft)
