"""Cron schedules as upstream reads them (robfig/cron v3, standard parser): five fields, names, steps, ranges, and the `@` descriptors.

`parse` gives what the CronJob controller needs: for each field the set of values, as the field's bounds have them.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

_BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_MONTHS = {m: i + 1 for i, m in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])}
_DAYS = {d: i for i, d in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_NAMES: tuple[dict[str, int], ...] = ({}, {}, {}, _MONTHS, _DAYS)
_DESCRIPTORS = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
SCHEDULES_CACHED_MAX = 4096


class CronError(ValueError):
    """The text is no schedule; says why in upstream's words."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A parsed schedule: the values of each field; `star_day`, `star_weekday`: the field was `*`, so the other alone decides the day."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    star_day: bool
    star_weekday: bool
    zone: str = ""  # of TZ= or CRON_TZ=
    every_seconds: int = 0  # of @every: a constant delay, the fields do not count


@functools.lru_cache(maxsize=SCHEDULES_CACHED_MAX)
def parse(text: str) -> Schedule:
    """Raises CronError."""
    if not text:
        raise CronError("empty spec string")
    zone = ""
    if text.startswith(("TZ=", "CRON_TZ=")):
        head, _, text = text.partition(" ")
        zone, text = head.partition("=")[2], text.strip()
    if text.startswith("@"):
        return _descriptor(text, zone)
    fields = text.split()
    if len(fields) != 5:
        raise CronError(f"expected exactly 5 fields, found {len(fields)}: [{' '.join(fields)}]")
    minutes, hours, days, months, weekdays = (_field(fields[i], i) for i in range(5))
    return Schedule(minutes[0], hours[0], days[0], months[0], weekdays[0], days[1], weekdays[1], zone)


def explain(text: str) -> str:
    """What is wrong with a schedule, "" when nothing is."""
    try:
        parse(text)
    except CronError as e:
        return str(e)
    return ""


def _descriptor(text: str, zone: str) -> Schedule:
    if text.startswith("@every "):
        seconds = _duration(text[7:])
        if seconds is None:
            raise CronError(f'failed to parse duration {text}: time: invalid duration "{text[7:]}"')
        none: frozenset[int] = frozenset()
        return Schedule(none, none, none, none, none, True, True, zone, max(1, seconds))
    if text not in _DESCRIPTORS:
        raise CronError(f"unrecognized descriptor: {text}")
    plain = parse(_DESCRIPTORS[text])
    return Schedule(plain.minutes, plain.hours, plain.days, plain.months, plain.weekdays, plain.star_day, plain.star_weekday, zone)


def _duration(text: str) -> int | None:
    """Go's durations, whole seconds: "1h30m10s"."""
    if not re.fullmatch(r"(\d+(\.\d*)?(h|m|s|ms|us|ns))+", text):
        return None
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    return int(sum(float(n) * units[u] for n, _, u in re.findall(r"(\d+(\.\d*)?)(ms|us|ns|h|m|s)", text)))


def _field(text: str, index: int) -> tuple[frozenset[int], bool]:
    """-> (values, whether it was a star)."""
    values: set[int] = set()
    star = False
    for part in [p for p in text.split(",") if p]:
        found, is_star = _range(part, index)
        values.update(found)
        star = star or is_star
    return frozenset(values), star


def _range(text: str, index: int) -> tuple[range, bool]:
    low_bound, high_bound = _BOUNDS[index]
    pieces = text.split("/")
    ends = pieces[0].split("-")
    star = False
    single = len(ends) == 1
    if ends[0] in ("*", "?"):
        low, high, star = low_bound, high_bound, True
    else:
        low = _number(ends[0], index)
        if len(ends) == 1:
            high = low
        elif len(ends) == 2:
            high = _number(ends[1], index)
        else:
            raise CronError(f"too many hyphens: {text}")
    step = 1
    if len(pieces) == 2:
        step = _integer(pieces[1])
        if single and not star:
            high = high_bound
        if step > 1:
            star = False
    elif len(pieces) > 2:
        raise CronError(f"too many slashes: {text}")
    if low < low_bound:
        raise CronError(f"beginning of range ({low}) below minimum ({low_bound}): {text}")
    if high > high_bound:
        raise CronError(f"end of range ({high}) above maximum ({high_bound}): {text}")
    if low > high:
        raise CronError(f"beginning of range ({low}) beyond end of range ({high}): {text}")
    if step == 0:
        raise CronError(f"step of range should be a positive number: {text}")
    return range(low, high + 1, step), star


def _number(text: str, index: int) -> int:
    names = _NAMES[index]
    return names[text.lower()] if text.lower() in names else _integer(text)


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text):
        raise CronError(f'failed to parse int from {text}: strconv.Atoi: parsing "{text}": invalid syntax')
    if int(text) < 0:
        raise CronError(f"negative number ({int(text)}) not allowed: {text}")
    return int(text)
