"""Two hosts at once: whatever one of them does happens between any two system calls of the other."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from kvmd.core.placement import Placement
from kvmd.errors import InUseError
from kvmd.store.looking import placement_of
from kvmd.store.shared.leases import Holding, Leases
from kvmd.store.shared.references import References
from tests.kvmd.store.contract import digest

T = TypeVar("T")
_CALLS = ("open", "listdir", "stat", "link", "rename", "unlink", "pwrite", "mkdir")
CONTENT = b"volume" * 1000
MANY = 200
"""More calls than anything here makes."""


@contextmanager
def interrupted(number: int, other: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Do something else right before the N-th system call in here; the list tells whether that was done."""
    count, done = itertools.count(1), list[object]()

    def watched(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            if not done and next(count) == number:
                done.append(None)
                done[0] = other()
            return real(*arguments, **keywords)

        return call

    with monkeypatch.context() as patching:
        for name in _CALLS:
            patching.setattr(os, name, watched(getattr(os, name)))
        yield done


def outcome(work: Callable[[], T]) -> T | None:
    """Give what it gives, None where it is refused."""
    try:
        return work()
    except InUseError:
        return None


def points(pool: Path) -> Iterator[tuple[int, Path, Placement]]:
    """Give the number of a call, a fresh pool, and a volume in it that kvm01 has made."""
    for number in range(1, MANY):
        folder = pool / str(number)
        folder.mkdir()
        (folder / "disk").write_bytes(CONTENT)
        placement = placement_of((folder / "disk").stat(), str(folder / "disk"), digest(CONTENT))
        References(folder, host="kvm01").make(placement)
        yield number, folder, placement


def test_a_volume_that_is_held_in_the_middle_of_a_removal_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set[tuple[bool, bool]]()
    for number, pool, placement in points(tmp_path):
        first, second = References(pool, host="kvm01"), References(pool, host="kvm02")
        with interrupted(
            number, partial(outcome, partial(second.hold, placement, is_ours=False)), monkeypatch
        ) as others:
            is_removed = outcome(partial(first.remove, placement))
        if not others:
            break
        is_held = others[0] is not None
        assert (pool / "disk").exists() == (not is_removed)
        assert not (is_held and is_removed), f"call {number}"
        seen.add((is_held, bool(is_removed)))
    assert {(True, False), (False, True)} <= seen


def test_a_volume_that_is_removed_in_the_middle_of_being_held_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set[bool]()
    for number, pool, placement in points(tmp_path):
        first, second = References(pool, host="kvm01"), References(pool, host="kvm02")
        with interrupted(number, partial(outcome, partial(first.remove, placement)), monkeypatch) as others:
            is_held = outcome(partial(second.hold, placement, is_ours=False)) is not None
        if not others:
            break
        assert not is_held or (pool / "disk").exists(), f"call {number}"
        seen.add(is_held)
    assert seen == {True, False}


def test_of_two_hosts_that_remove_at_once_one_deletes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, pool, placement in points(tmp_path):
        first, second = References(pool, host="kvm01"), References(pool, host="kvm02")
        second.hold(placement, is_ours=False)
        with interrupted(number, partial(outcome, partial(second.remove, placement)), monkeypatch) as others:
            is_removed = outcome(partial(first.remove, placement))
        if not others:
            break
        assert not (pool / "disk").exists(), f"call {number}"
        assert bool(is_removed) != bool(others[0]), f"call {number}"


def test_of_two_hosts_that_want_to_make_a_volume_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, MANY):
        pool = tmp_path / str(number)
        pool.mkdir()
        first, second = Leases(pool, host="kvm01", lease_s=60), Leases(pool, host="kvm02", lease_s=60)
        with interrupted(number, partial(second.take, "disk"), monkeypatch) as others:
            taken = first.take("disk")
        won = [one for one in (taken, *others) if isinstance(one, Holding)]
        confirmed = [one.confirm() for one in won]
        for one in won:
            one.release()
        assert confirmed.count(True) == 1, f"call {number}"
        assert list((pool / ".kvmd" / "shared").iterdir()) == []
        if not others:
            break


def test_a_host_that_takes_over_while_another_lets_go_has_it_or_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, MANY):
        pool = tmp_path / str(number)
        pool.mkdir()
        first, second = Leases(pool, host="kvm01", lease_s=60), Leases(pool, host="kvm02", lease_s=60)
        held = first.take("disk")
        assert isinstance(held, Holding)
        with interrupted(number, partial(second.take, "disk"), monkeypatch) as others:
            held.release()
        if not others:
            break
        late = others[0] if isinstance(others[0], Holding) else second.take("disk")
        assert isinstance(late, Holding)
        assert late.confirm(), f"call {number}"
        late.release()
        assert list((pool / ".kvmd" / "shared").iterdir()) == []
