"""Leases: what is read is what was written, and nobody is taken for gone who shows life."""

from __future__ import annotations

import json
import zlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kvmd.core.lease import Lease, Watch, file_of, is_over, numbers, watched

LEASE_S = 30.0
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
leases = st.builds(
    Lease,
    host=names,
    token=st.text("0123456789abcdef", min_size=24, max_size=24),
    lease_s=st.floats(0.1, 3600),
    beat=st.integers(0, 1 << 40),
    done=st.integers(0, 1 << 50),
    size=st.none() | st.integers(0, 1 << 50),
)
seconds = st.floats(0, 100, allow_nan=False)


@given(leases)
def test_a_lease_is_read_as_it_was_written_and_always_has_one_length(lease: Lease) -> None:
    assert Lease.decode(lease.encode()) == lease
    assert len(lease.encode()) == 512


@given(leases, st.integers(0, 200), st.integers(1, 255))
def test_a_damaged_lease_is_no_lease(lease: Lease, position: int, flip: int) -> None:
    data = bytearray(lease.encode())
    end = data.index(b"\n") + 9
    data[position % end] ^= flip
    assert Lease.decode(bytes(data)) in {None, lease}
    assert Lease.decode(bytes(data[: position % end])) is None


@pytest.mark.parametrize("lease_s", [0.0, -1.0, 1e9, float("nan"), float("inf")])
def test_a_lease_of_an_absurd_length_is_no_lease(lease_s: float) -> None:
    assert Lease.decode(Lease("kvm01", "a", lease_s).encode()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"host": "a\0b"},
        {"host": ""},
        {"done": -1},
        {"size": -1},
        {"done": 1 << 63},
        {"beat": float("inf")},
        {"size": "x"},
    ],
)
def test_a_lease_with_figures_that_cannot_be_is_no_lease(change: dict[str, object]) -> None:
    body = json.dumps(json.loads(Lease("kvm01", "a", 1.0).encode().partition(b"\n")[0]) | change).encode()
    assert Lease.decode(body + b"\n%08x\n" % zlib.crc32(body)) is None


@pytest.mark.parametrize("body", [b"[" * 4000, b"[]", b'"kvm01"', b"null"])
def test_json_that_is_no_lease_is_none(body: bytes) -> None:
    assert Lease.decode(body + b"\n%08x\n" % zlib.crc32(body)) is None


@given(names, st.sets(st.integers(1, 10**6)), names)
def test_the_leases_of_a_volume_are_found_by_their_names(volume: str, taken: set[int], other: str) -> None:
    files = [file_of(volume, number) for number in taken] + [f"{volume}@kvm01.ref", f"{volume}@x.new"]
    files += [file_of(other, 7)] if other != volume else []
    assert numbers(volume, files) == tuple(sorted(taken))


@given(st.lists(st.tuples(seconds, seconds), min_size=2, max_size=30), st.data())
def test_whoever_renews_in_time_is_never_taken_for_gone(looks: list[tuple[float, float]], data: st.DataObject) -> None:
    """However long looks take and lie apart: what a look sees was written in the lease's time before its question, or later."""
    lease, watch, now, beat, renewed = Lease("kvm02", "t", LEASE_S), None, 0.0, 0, 0.0
    for pause, length in looks:
        asked = now + pause
        answered = asked + length
        read = data.draw(st.floats(asked, answered))
        while renewed + LEASE_S / 2 <= read:
            renewed, beat = renewed + data.draw(st.floats(LEASE_S / 4, LEASE_S / 2)), beat + 1
        seen = Lease(lease.host, lease.token, LEASE_S, beat=beat).encode()
        watch = watched(watch, 1, seen, answered=answered)
        assert not is_over(watch, asked=asked, host="kvm01", lease_s=LEASE_S)
        now = answered


@given(seconds, st.floats(LEASE_S, 1000))
def test_whoever_changes_nothing_for_its_time_is_gone(first: float, later: float) -> None:
    seen = Lease("kvm02", "t", LEASE_S).encode()
    watch = watched(None, 1, seen, answered=first)
    again = watched(watch, 1, seen, answered=first + later + 1)
    assert again is watch
    assert is_over(again, asked=first + later + 1, host="kvm01", lease_s=1.0)


def test_an_earlier_run_of_the_same_host_is_gone_sooner() -> None:
    watch = Watch(1, Lease("kvm01", "t", LEASE_S).encode(), since=0.0)
    assert is_over(watch, asked=LEASE_S / 5, host="kvm01", lease_s=LEASE_S)
    assert not is_over(watch, asked=LEASE_S / 5, host="kvm02", lease_s=LEASE_S)


def test_a_lease_that_cannot_be_read_is_given_ones_own_time() -> None:
    watch = Watch(1, b"torn", since=0.0)
    assert is_over(watch, asked=LEASE_S, host="kvm01", lease_s=LEASE_S)
    assert not is_over(watch, asked=LEASE_S - 1, host="kvm01", lease_s=LEASE_S)


def test_another_lease_is_watched_anew() -> None:
    watch = Watch(1, b"a", since=0.0)
    assert watched(watch, 2, b"a", answered=9.0) == Watch(2, b"a", since=9.0)
    assert watched(watch, 1, b"b", answered=9.0) == Watch(1, b"b", since=9.0)
