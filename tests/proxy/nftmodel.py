"""A model of the part of nft that the proxy speaks: tables, sets, maps, chains, elements; strict where the kernel is."""

from __future__ import annotations

import re


class Ruleset:
    def __init__(self) -> None:
        self.tables: dict[str, dict[str, dict[str, str | None]]] = {}

    def run(self, text: str) -> None:
        for line in text.splitlines():
            words = line.split(" ", 5)
            verb, what, table = words[0], words[1], f"{words[2]} {words[3]}"
            if what == "table":
                self._table(verb, table)
            elif what in ("map", "set", "chain"):
                self._part(verb, f"{what} {words[4]}", self.tables[table])
            elif what == "element":
                self._elements(verb, words[4], words[5], self.tables[table])
            else:
                assert what == "rule", line
                for target in re.findall(r"(?:goto|jump) (\S+)", line):
                    assert f"chain {target.rstrip(';')}" in self.tables[table], line

    def _table(self, verb: str, table: str) -> None:
        if verb == "delete":
            del self.tables[table]
        else:
            self.tables.setdefault(table, {})

    def _part(self, verb: str, part: str, parts: dict[str, dict[str, str | None]]) -> None:
        if verb == "add":
            parts.setdefault(part, {})
        elif verb == "flush":
            parts[part].clear()
        else:
            verdicts = {value for elements in parts.values() for value in elements.values()}
            assert f"goto {part.split()[1]}" not in verdicts, f"{part} is in use"
            del parts[part]

    def _elements(self, verb: str, name: str, body: str, parts: dict[str, dict[str, str | None]]) -> None:
        elements = parts.get(f"map {name}", parts.get(f"set {name}"))
        assert elements is not None, name
        for item in body.strip(" {}").split(", "):
            key, _, value = item.partition(" : ")
            if verb == "delete":
                del elements[key]
            else:
                assert elements.get(key, value) == value, f"{name}: {key} is there with another value"
                assert not value.startswith("goto ") or f"chain {value[5:]}" in parts, value
                elements[key] = value

    def parts(self) -> set[str]:
        return {part for parts in self.tables.values() for part in parts}

    def elements(self) -> dict[str, dict[str, str | None]]:
        return {part: elements for parts in self.tables.values() for part, elements in parts.items() if elements}
