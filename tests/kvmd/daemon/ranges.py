"""Which bytes of a volume are stored, and which are asked for."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.hostile import Exchange

PROBE = "bytes=0-65535"
PROBE_SIZE = 65536
Ranges = list[tuple[int, int]]


def stored_ranges(journal: Path) -> Ranges:
    """Read which bytes a partial volume's journal vouches for."""
    document = json.loads(journal.read_text().splitlines()[0])  # then comes its CRC
    return [(int(start), int(end)) for start, end in document["stored"]]


def asked(exchange: Exchange) -> tuple[int, int]:
    """Read which bytes a request wants, end excluded."""
    low, _, high = (exchange.header("Range") or "").removeprefix("bytes=").partition("-")
    return int(low), int(high) + 1


def assert_nothing_is_asked_for_again(requests: list[Exchange], stored: Ranges) -> None:
    """Of all requests but the probes none is for bytes that are stored."""
    again = [asked(one) for one in requests if one.header("Range") != PROBE]
    assert all(end <= low or high <= start for start, end in again for low, high in stored), (again, stored)
