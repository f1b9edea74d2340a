"""The small kernels under selectors, stored bytes and the log: what one call costs."""

from __future__ import annotations

from bench.api.pods import BODY
from fastkube._ext.scan import find
from fastkube._ext.selectors import Match
from fastkube._ext.wal import crc32c, frame, scan

LABELS = {"app": "web", "tier": "front", "pod-template-hash": "66b686d94f"}


def test_scan_finds_a_member_of_stored_bytes(benchmark):
    assert benchmark(find, BODY, (b"metadata", b"name")) is not None


def test_selector_matches_labels(benchmark):
    match = Match([("app", "in", frozenset({"web", "api"})), ("tier", "in", frozenset({"front"}))])
    assert benchmark(match.matches, LABELS)


def test_crc32c_of_a_value(benchmark):
    benchmark(crc32c, BODY)


def test_wal_scan_of_a_thousand_frames(benchmark):
    data, crc = bytearray(), 0
    for _ in range(1000):
        one, crc = frame(1, BODY[:1024], crc)
        data += one
    benchmark(scan, bytes(data), 0, 0, lambda *_: None)
