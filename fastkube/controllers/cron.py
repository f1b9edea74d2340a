"""Cron schedules (robfig/cron's standard parser): five fields, names, steps, @hourly and friends, in any time zone. Pure.

`Schedule.next(t)` is the first time after `t`, to the minute, that the schedule names. Local times that a daylight-saving change skips do not occur;
those that occur twice count once, the first time.
"""

from __future__ import annotations

import datetime
import re
import zoneinfo
from dataclasses import dataclass

YEARS_AHEAD_MAX = 5  # a schedule that names no time within these names none (30 February)

_MACROS = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0", "@daily": "0 0 * * *", "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}  # fmt: skip
_MONTHS = {n: i for i, n in enumerate(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1)}
_DAYS = {n: i for i, n in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_EVERY = re.compile(r"@every\s+((?:\d+(?:\.\d+)?(?:h|m|s))+)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Schedule:
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool  # the day-of-month field was * or ?
    any_weekday: bool
    zone: datetime.tzinfo
    every_seconds: float = 0.0  # @every: a fixed distance instead

    def next(self, after: float) -> float | None:
        """The first time after `after` (seconds since the epoch); None when there is none within YEARS_AHEAD_MAX."""
        if self.every_seconds:
            return float(int(after)) + self.every_seconds
        local = datetime.datetime.fromtimestamp(after, self.zone)
        day = local.date()
        last = day.replace(day=1, month=1, year=day.year + YEARS_AHEAD_MAX)
        while day < last:
            if day.month not in self.months:
                day = (day.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
                continue
            if self._fits(day):
                found = self._first_on(day, after)
                if found is not None:
                    return found
            day += datetime.timedelta(days=1)
        return None

    def _fits(self, day: datetime.date) -> bool:
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return of_month and of_week
        return of_month or of_week  # both restricted: either will do

    def _first_on(self, day: datetime.date, after: float) -> float | None:
        for hour in sorted(self.hours):
            for minute in sorted(self.minutes):
                local = datetime.datetime(day.year, day.month, day.day, hour, minute, tzinfo=self.zone)
                at = local.timestamp()
                if at > after and datetime.datetime.fromtimestamp(at, self.zone).replace(tzinfo=None) == local.replace(tzinfo=None):
                    return at
        return None


def parse(text: str, time_zone: str | None = None) -> Schedule:
    """A schedule in a time zone (None: UTC). Raises ValueError saying what is wrong."""
    try:
        zone: datetime.tzinfo = zoneinfo.ZoneInfo(time_zone) if time_zone else datetime.UTC
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as e:
        raise ValueError(f"unknown time zone {time_zone}") from e
    text = text.strip()
    everything = frozenset(range(60))
    every = _EVERY.fullmatch(text)
    if every:
        seconds = sum(float(n) * _UNITS[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)(h|m|s)", every[1]))
        return Schedule(everything, everything, everything, everything, everything, True, True, zone, max(float(int(seconds)), 1.0))
    fields = _MACROS.get(text, text).split()
    if len(fields) != 5:
        raise ValueError(f"expected exactly 5 fields, found {len(fields)}: {fields}")
    minutes, hours, days, months, weekdays = (
        _field(f, *bounds)
        for f, bounds in zip(fields, ((0, 59, {}), (0, 23, {}), (1, 31, {}), (1, 12, _MONTHS), (0, 7, _DAYS)), strict=True)  # type: ignore[arg-type]
    )
    star = lambda f: f[0] in "*?"  # noqa: E731
    return Schedule(minutes, hours, days, months, frozenset(d % 7 for d in weekdays), star(fields[2]), star(fields[4]), zone)


def _field(text: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    out: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        first_text, dash, last_text = span.partition("-")
        if span in ("*", "?"):
            first, last = low, high if names is not _DAYS else 6
        else:
            first = _number(first_text, names)
            last = _number(last_text, names) if dash else (high if slash else first)
        step = _number(step_text, {}) if slash else 1
        if first < low or last > high or first > last or step < 1:
            raise ValueError(f"{part!r} is not within {low}-{high}")
        out.update(range(first, last + 1, step))
    return frozenset(out)


def _number(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is no number")
    return int(text)
