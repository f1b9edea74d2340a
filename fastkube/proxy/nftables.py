"""The nftables driver: one change of Services is one transaction of element adds and deletes; a restart is one transaction too.

Laws:
- a transaction is all or nothing (the kernel's own promise), so no packet ever sees half a service;
- `replace` puts the whole state in place of whatever was there, in one transaction: nothing stale stays, no live rule is missing for a
  moment, and clients' session affinity lives on (only a table of another layout version is dropped as a whole);
- after a failed transaction the caller replaces.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from fastkube.proxy import nftelements
from fastkube.proxy.diff import Change
from fastkube.proxy.layout import TABLE, Address, ElementKey, Elements, Lane, Layout, Value, lanes_of
from fastkube.proxy.netlink import Socket
from fastkube.runtime import logs

log = logs.get("proxy.nftables")

DYNAMIC = ("affinity", "node-affinity")  # filled by packets, never by us


class NftError(RuntimeError):
    """nft refused; the message is its own."""


class Transaction:
    """Changes of one family, collected: `structure` (lines for nft) and elements. `text` is all of it for nft."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.structure: list[str] = []
        self.deletes: list[ElementKey] = []
        self.adds: list[tuple[ElementKey, Value]] = []

    @property
    def is_small(self) -> bool:
        """Whether it is elements only, few, and of sets without intervals: what goes over netlink directly."""
        elements = len(self.deletes) + len(self.adds)
        return not self.structure and elements <= nftelements.ELEMENTS_MAX and all(name != "sources" for name, _ in (*self.deletes, *(k for k, _ in self.adds)))

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

    def text(self) -> str:
        at = f"{self.layout.nft} {TABLE}"
        groups: dict[str, list[str]] = {}
        for name, key in self.deletes:
            groups.setdefault(f"delete element {at} {name}", []).append(key_text(key))
        for (name, key), value in self.adds:
            item = key_text(key) if value is None else f"{key_text(key)} : {value_text(value)}"
            groups.setdefault(f"add element {at} {name}", []).append(item)
        lines = self.structure + [f"{head} {{ {', '.join(items)} }}" for head, items in groups.items()]
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

    def change(self, changes: Iterable[Change]) -> Transaction:
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
                    transaction.deletes.append(element)
                if is_there[0]:
                    transaction.adds.append((element, is_there[1]))
        return transaction

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
        filled = self.change(changes).text()
        wanted = self.layout.base().keys() | {f"chain {lane.name}" for lane in self.lanes}
        unused = [f"{verb} {part.replace(' ', f' {at} ')}" for verb in ("flush", "delete") for part in sorted(present - wanted) if part.startswith("chain ")]
        return "\n".join(start) + "\n" + base.text() + "".join(f"{line}\n" for line in unused) + filled

    def _define(self, transaction: Transaction, lane: Lane) -> None:
        if lane not in self.lanes:
            self.lanes.add(lane)
            transaction.define({f"chain {lane.name}": self.layout.lane_body(lane)})


class Nft:
    """The kernel's nftables: through the nft program, small changes over netlink. `argv`, `netns`: for tests in a namespace of their own."""

    def __init__(self, argv: Sequence[str] = ("nft",), netns: str | None = None) -> None:
        self.argv = tuple(argv)
        self.netns = netns
        self._socket: Socket | None = None

    async def run(self, text: str) -> None:
        if text:
            await self._call("-f", "-", input=text)

    async def apply(self, transactions: Sequence[Transaction]) -> None:
        """All of them as one transaction of the kernel. Raises NftError."""
        if not all(t.is_small for t in transactions):
            await self.run("".join(t.text() for t in transactions))
            return
        messages = [m for t in transactions for m in nftelements.messages(t.layout.nft, t.deletes, t.adds)]
        if messages:
            try:
                self._connection().batch(nftelements.SUBSYSTEM, messages)
            except OSError as e:
                raise NftError(f"element change refused: {e}") from e

    def present(self, family: str) -> set[str]:
        """What our table holds, as `map NAME`, `set NAME`, `chain NAME`; empty when there is no table. OSError."""
        return nftelements.present(self._connection(), family)

    def _connection(self) -> Socket:
        if self._socket is None:
            self._socket = nftelements.socket_in(self.netns)
        return self._socket

    async def deletions(self) -> AsyncIterator[None]:
        """Yields when our table was deleted, by whomever, or may have been: the kernel had more to tell than we could read."""
        connection = nftelements.socket_in(self.netns)
        connection.join(nftelements.GROUP)
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(connection.fileno(), readable.set)
        try:
            while True:
                readable.clear()
                await readable.wait()
                if nftelements.table_deleted(connection):
                    yield
        finally:
            loop.remove_reader(connection.fileno())
            connection.close()

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
        text = [table.replace(changes, self.nft.present(table.layout.nft)) for table in self.tables]
        await self.nft.run("".join(text))

    async def change(self, changes: Iterable[Change]) -> None:
        changes = list(changes)
        await self.nft.apply([table.change(changes) for table in self.tables])

    async def watch(self, lost: Callable[[], None]) -> None:
        async for _ in self.nft.deletions():
            # Our own big transactions overflow the listener too: only what is not there is lost.
            if any(f"chain {table.layout.version}" not in self.nft.present(table.layout.nft) for table in self.tables):
                log.warning("somebody removed the table, programming it again", table=TABLE)
                lost()

    async def cleanup(self) -> None:
        for table in self.tables:
            await self.nft.delete(table.layout.nft)
