"""Times and bytes as the API writes them: RFC 3339 in UTC, whole seconds (Time) or microseconds (MicroTime), standard base64.

What cannot be read is refused in the words of Go's time and base64 packages, which is what clients of upstream see.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime, timedelta, timezone

from fastkube._ext.schema import DecodeError

_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d?):(\d\d):(\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)
_LAYOUT = "2006-01-02T15:04:05Z07:00"
_LAYOUT_MICRO = "2006-01-02T15:04:05.000000Z07:00"
_UTC_SECONDS = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\dZ", re.ASCII).fullmatch


def canonical(text: str) -> str | None:
    """A metav1.Time as upstream writes it; None for the zero time. Raises DecodeError."""
    if _UTC_SECONDS(text):
        return text if not text.startswith("0001-01-01T00:00:00") else None
    at = _parse(text, _LAYOUT)
    return None if at is None else at.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def canonical_micro(text: str) -> str | None:
    """A metav1.MicroTime as upstream writes it. Raises DecodeError."""
    at = _parse(text, _LAYOUT_MICRO)
    return None if at is None else at.strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


def canonical_bytes(text: str) -> str:
    """Standard base64, line breaks taken out. Raises ValueError in Go's words."""
    bare = text.replace("\r", "").replace("\n", "")
    try:
        decoded = base64.b64decode(bare, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"illegal base64 data at input byte {_illegal_at(text)}") from None
    again = base64.b64encode(decoded).decode()
    return again if again != text else text


def _illegal_at(text: str) -> int:
    """Where Go's decoder says the input goes wrong."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    at, n = 0, len(text)
    while at < n:
        for j in range(4):
            while at < n and text[at] in "\r\n":
                at += 1
            if at == n:
                return n - j if j else n
            c = text[at]
            at += 1
            if c in alphabet:
                continue
            if c != "=":
                return at - 1
            if j < 2:
                return at - 1
            while at < n and text[at] in "\r\n":
                at += 1
            if j == 2:
                if at == n:
                    return n
                if text[at] != "=":
                    return at - 1
                at += 1
                while at < n and text[at] in "\r\n":
                    at += 1
            return at
    return n


def _parse(text: str, layout: str) -> datetime | None:
    m = _TIME.fullmatch(text)
    if m is None or (layout == _LAYOUT_MICRO and len(m[7] or "") < 6):
        raise DecodeError(_explain(text, layout))
    year, month, day, hour, minute, second = (int(g) for g in m.groups()[:6])
    zone = m[8]
    offset = timedelta(0) if zone == "Z" else (1 if zone[0] == "+" else -1) * timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
    try:
        micro = int((m[7] or "0")[:6].ljust(6, "0"))
        at = datetime(year, month, day, hour, minute, second, micro, tzinfo=timezone(offset)).astimezone(UTC)
    except (ValueError, OverflowError):
        for what, value, low, high in (("month", month, 1, 12), ("hour", hour, 0, 23), ("minute", minute, 0, 59), ("second", second, 0, 59)):
            if not low <= value <= high:
                raise DecodeError(f'parsing time "{text}": {what} out of range') from None
        if year == 0:
            return None
        raise DecodeError(f'parsing time "{text}": day out of range') from None
    return None if at == datetime(1, 1, 1, tzinfo=UTC) else at


def _explain(text: str, layout: str) -> str:
    """Go's message of a text that does not fit its layout: which element failed on what is left."""
    left = text
    head = f'parsing time "{text}" as "{layout}": '
    parts = [
        ("2006", r"\d{4}"),
        ("-", "-"),
        ("01", r"\d\d"),
        ("-", "-"),
        ("02", r"\d\d"),
        ("T", "T"),
        ("15", r"\d\d?"),
        (":", ":"),
        ("04", r"\d\d"),
        (":", ":"),
        ("05", r"\d\d"),
    ]
    parts += [(".000000", r"[.,]\d{6}")] if layout == _LAYOUT_MICRO else [("", r"(?:[.,]\d+)?")]
    parts.append(("Z07:00", r"Z|[+-]\d\d:\d\d"))
    for element, pattern in parts:
        m = re.match(pattern, left, re.ASCII)
        if m is None:
            return f'{head}cannot parse "{left}" as "{element}"'
        left = left[m.end() :]
    return f'parsing time "{text}": extra text: "{left}"'
