"""Records of what volumes were made of survive their way to the disk and back, and nothing else does."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.compression import Compression
from kvmd.core.image import FoundFormat
from kvmd.core.provenance import Provenance, Record
from tests.kvmd.core.strategies import NOW, digest, moments

digests = st.sampled_from("abcdef").map(digest)
several = st.lists(digests, max_size=3).map(tuple)
provenances = st.builds(
    Provenance,
    several,
    st.none() | st.sampled_from(Compression),
    several,
    st.none() | st.sampled_from(FoundFormat),
)
records = st.builds(Record, digests, st.text("0123456789abcdef", min_size=16, max_size=40), moments, provenances)
ONE = Record(digest("a"), "0" * 16, NOW, Provenance((digest("b"),), None, (digest("c"),), FoundFormat.QCOW2))


@given(records)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert Record.decode(record.encode()) == record


@given(records, st.data())
def test_a_torn_record_is_none(record: Record, data: st.DataObject) -> None:
    text = record.encode()
    assert Record.decode(text[: data.draw(st.integers(0, len(text) - 1))]) is None


@given(st.binary(max_size=200))
def test_garbage_is_none(text: bytes) -> None:
    assert Record.decode(text) is None


def sealed(body: bytes) -> bytes:
    return body + b"\n%08x\n" % zlib.crc32(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(json.loads(ONE.encode().split(b"\n")[0]))), values, max_size=4))
def test_a_record_whose_fields_say_something_else_is_none_or_a_record(changes: dict[str, object]) -> None:
    fields = json.loads(ONE.encode().split(b"\n")[0]) | changes
    found = Record.decode(sealed(json.dumps(fields).encode()))
    assert found is None or found == Record.decode(found.encode())


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"version": 2}', b"[" * 50_000, b"null"])
def test_what_is_no_record_of_this_version_is_none(body: bytes) -> None:
    assert Record.decode(sealed(body)) is None


def test_what_a_volume_was_made_of_is_known_by_any_of_its_digests() -> None:
    made = ONE.provenance
    assert made.is_of_file(digest("b"))
    assert made.is_of_content(digest("c"))
    assert not made.is_of_file(digest("c"))
    assert not made.is_of_content(digest("b"))
