"""What is noted of the volumes of block pools, and what follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.allotment import (
    PARTITION_SLACK,
    SLACK,
    Holding,
    Intention,
    Note,
    Slot,
    Vacant,
    best_fit,
    decode,
    encode,
    free_name,
    held,
    partition_name,
    rounded,
    subject,
    superseded,
)
from kvmd.core.compression import Compression
from kvmd.core.provenance import Provenance
from kvmwire.digest import Algorithm, Digest

DIGEST = Digest(Algorithm.SHA_256, "ab" * 32)
texts = st.text(min_size=1, max_size=20)
slots = st.builds(Slot, texts, texts, texts, texts, st.integers(0, 1 << 50), st.none() | st.integers(0, 1 << 50))
provenances = st.none() | st.builds(
    Provenance,
    served=st.just((DIGEST,)),
    compression=st.none() | st.sampled_from(Compression),
    image=st.just((DIGEST,)),
)
notes: st.SearchStrategy[Note] = st.one_of(
    st.builds(Intention, texts, texts, st.integers(0, 1 << 50)),
    st.builds(Vacant, slots, st.integers(0, 1 << 50), st.text(max_size=20)),
    st.builds(
        Holding,
        slots,
        texts,
        texts,
        st.integers(1, 1 << 50),
        st.just(DIGEST),
        st.integers(0, 1 << 62),
        texts,
        provenances,
    ),
)


def slot(volume: str = "vda1", *, capacity: int = 1 << 20, pool: str = "p") -> Slot:
    """Describe a volume."""
    return Slot(pool, volume, f"key of {volume}", f"/dev/{volume}", capacity, 17408)


def holding(where: Slot, *, name: str = "disk", placed_ns: int = 1) -> Holding:
    """Describe what a volume holds."""
    return Holding(where, name, "0" * 16, 1000, DIGEST, placed_ns, "sample")


@given(notes)
def test_a_note_is_read_as_it_was_written(note: Note) -> None:
    assert decode(encode(note)) == note


@given(notes, st.data())
def test_a_note_that_was_torn_or_changed_is_none(note: Note, data: st.DataObject) -> None:
    whole = encode(note)
    assert decode(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None
    place = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    assert decode(whole[:place] + bytes([other]) + whole[place + 1 :]) in {
        None,
        note,
    }  # the CRC may be written in capitals


@given(st.binary())
def test_anything_else_is_no_note(content: bytes) -> None:
    assert decode(content) is None


@pytest.mark.parametrize(
    ("there", "is_made"),
    [
        (slot(capacity=4096), True),
        (slot(capacity=4096 + PARTITION_SLACK), True),
        (slot(capacity=4095), False),
        (slot(capacity=4097 + PARTITION_SLACK), False),
        (replace(slot(capacity=4096 + SLACK), start=None), True),
        (replace(slot(capacity=4097 + SLACK), start=None), False),
        (slot("vda2", capacity=4096), False),
        (slot(capacity=4096, pool="other"), False),
    ],
)
def test_a_volume_is_the_one_that_was_to_be_made(there: Slot, is_made: bool) -> None:  # noqa: FBT001 - a parameter
    assert Intention("p", "vda1", 4096).covers(there) is is_made


def test_only_a_volume_that_is_there_as_it_was_is_believed() -> None:
    one = slot()
    assert held([holding(one)], "disk", [one]) == holding(one)
    assert held([holding(one)], "other", [one]) is None
    assert held([Vacant(one)], "disk", [one]) is None
    for changed in (replace(one, capacity=5), replace(one, key="k"), replace(one, pool="q"), replace(one, start=0)):
        assert held([holding(one)], "disk", [changed]) is None
    nameless = replace(one, key="")
    assert held([holding(nameless)], "disk", [nameless]) is None, "what cannot be recognised is not believed"


def test_a_volume_is_known_again_when_its_device_is_called_otherwise_since_a_boot() -> None:
    one = slot()
    now = replace(one, volume="vdb1", path="/dev/vdb1")
    found = held([holding(one)], "disk", [now])
    assert found is not None
    assert found.placement().path == "/dev/vdb1"
    assert found.placement().is_same_file(holding(one).placement())
    assert subject(found) == subject(holding(one)) == subject(Vacant(now))


def test_of_two_volumes_with_a_name_the_later_counts_and_the_other_is_superseded() -> None:
    old, new = holding(slot("vda1"), placed_ns=1), holding(slot("vda2"), placed_ns=2)
    there = [old.slot, new.slot]
    assert held([new, old], "disk", there) == new
    assert superseded([new, old], there) == [old]
    assert superseded([new, old], [old.slot]) == []
    assert superseded([new, old], [new.slot]) == [], "what has its place now is somebody else's"
    renamed = replace(old.slot, volume="vdb1", path="/dev/vdb1")
    assert [one.slot.path for one in superseded([new, old], [renamed, new.slot])] == ["/dev/vdb1"]


def test_a_volume_whose_sample_is_another_one_is_not_the_same() -> None:
    note = holding(slot())
    assert note.placement().is_same_file(note.placement())
    assert not note.placement(is_sampled=False).is_same_file(note.placement())
    elsewhere = holding(slot("vda2"))
    assert not elsewhere.placement().is_same_file(note.placement())


@given(st.integers(1, 1 << 50))
def test_room_is_asked_for_in_sectors(size: int) -> None:
    assert 0 <= rounded(size) - size < 4096
    assert rounded(size) % 4096 == 0


def test_the_smallest_volume_with_room_is_taken() -> None:
    small, large, other = slot("vda1", capacity=5), slot("vda2", capacity=9), slot("vda3", capacity=9)
    assert best_fit([other, large, small], 6) == large
    assert best_fit([other, large, small], 5) == small
    assert best_fit([small], 6) is None


@pytest.mark.parametrize(
    ("device", "taken", "name"),
    [
        ("/dev/sdb", set(), "sdb1"),
        ("/dev/sdb", {"sdb1", "sdb3"}, "sdb2"),
        ("/dev/nvme0n1", {"nvme0n1p1"}, "nvme0n1p2"),
        ("/dev/loop7", set(), "loop7p1"),
    ],
)
def test_a_partition_is_called_as_the_kernel_does(device: str, taken: set[str], name: str) -> None:
    assert partition_name(device, taken) == name


def test_a_volume_has_its_own_name_unless_an_older_one_has_it() -> None:
    assert free_name("disk", set()) == "disk"
    assert free_name("disk", {"disk", "disk+2"}) == "disk+1"
