from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.checkpoint import Checkpoint
from kvmd.core.entity import Entity, strong_etag
from kvmd.core.ranges import ByteRange, RangeSet
from kvmwire.digest import Digest
from tests.kvmd.core.strategies import entities, range_sets

PROMISED = (Digest.parse("{SHA-256}" + "ab" * 32),)
OTHER = (Digest.parse("{SHA-256}" + "cd" * 32),)
checkpoints = st.builds(
    Checkpoint,
    entity=entities,
    promised=st.sampled_from([(), PROMISED, OTHER, (*PROMISED, *OTHER)]),
    stored=range_sets(),
)
STRONG = Entity(size=100, has_ranges=True, etag='"one"')
DATED = Entity(size=100, has_ranges=True, last_modified="Sun, 01 Mar 2026 12:00:00 GMT")
ANONYMOUS = Entity(size=100, has_ranges=True)


def _signed(body: bytes) -> bytes:
    return body + b"\n%08x\n" % zlib.crc32(body)


@given(checkpoints)
def test_a_checkpoint_reads_back_as_it_was(checkpoint: Checkpoint) -> None:
    assert Checkpoint.decode(checkpoint.encode()) == checkpoint


@given(checkpoints, st.data())
def test_a_changed_byte_is_noticed(checkpoint: Checkpoint, data: st.DataObject) -> None:
    encoded = bytearray(checkpoint.encode())
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    assert Checkpoint.decode(bytes(encoded)) is None


@given(checkpoints, st.data())
def test_a_torn_file_is_noticed(checkpoint: Checkpoint, data: st.DataObject) -> None:
    encoded = checkpoint.encode()
    kept = data.draw(st.integers(0, len(encoded) - 1))
    assert Checkpoint.decode(encoded[:kept]) is None
    assert Checkpoint.decode(encoded[:kept] + bytes(len(encoded) - kept)) is None


@given(checkpoints, st.binary(min_size=1, max_size=40))
def test_a_longer_file_is_noticed(checkpoint: Checkpoint, more: bytes) -> None:
    assert Checkpoint.decode(checkpoint.encode() + more) is None


@given(st.binary(max_size=200))
def test_no_rubbish_is_a_checkpoint(rubbish: bytes) -> None:
    assert Checkpoint.decode(rubbish) is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": 1},
        {"promised": ["{SHA-256}12"]},
        {"promised": None},
        {"stored": [[5, 5]]},
        {"stored": [[-1, 5]]},
        {"stored": [[1, 2, 3]]},
        {"stored": [7]},
        {"stored": None},
    ],
)
def test_other_versions_and_impossible_ranges_are_ignored(change: dict[str, object]) -> None:
    value = json.loads(Checkpoint(STRONG, promised=PROMISED).encode().partition(b"\n")[0])
    assert Checkpoint.decode(_signed(json.dumps(value | change).encode())) is None


@pytest.mark.parametrize("field", ["version", "size", "ranges", "etag", "last_modified", "promised", "stored"])
def test_a_field_that_is_not_there_is_not_guessed(field: str) -> None:
    value = json.loads(Checkpoint(STRONG, promised=PROMISED).encode().partition(b"\n")[0])
    del value[field]
    assert Checkpoint.decode(_signed(json.dumps(value).encode())) is None


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"7", b'"text"', b"{}", b"\xff", b"[" * 100])
def test_json_that_is_no_checkpoint_is_ignored(body: bytes) -> None:
    assert Checkpoint.decode(_signed(body)) is None


@pytest.mark.parametrize("entity", [STRONG, DATED])
@pytest.mark.parametrize("promised", [PROMISED, ()])
def test_a_strong_validator_resumes(entity: Entity, promised: tuple[Digest, ...]) -> None:
    assert Checkpoint(entity).can_resume(entity, promised=promised)


def test_a_weak_entity_tag_alone_does_not_resume() -> None:
    weak = Entity(size=100, has_ranges=True, etag=strong_etag('W/"one"'))
    assert weak.validator is None
    assert not Checkpoint(weak, promised=()).can_resume(weak, promised=())


def test_without_validators_the_promised_digest_decides() -> None:
    assert Checkpoint(ANONYMOUS, promised=PROMISED).can_resume(ANONYMOUS, promised=PROMISED)


def test_without_validators_and_without_a_digest_nothing_resumes() -> None:
    assert not Checkpoint(ANONYMOUS, promised=()).can_resume(ANONYMOUS, promised=())


@pytest.mark.parametrize(("then", "now"), [(PROMISED, ()), ((), PROMISED), (PROMISED, OTHER)])
def test_the_same_digest_must_have_been_promised_both_times(then: tuple[Digest, ...], now: tuple[Digest, ...]) -> None:
    assert not Checkpoint(ANONYMOUS, promised=then).can_resume(ANONYMOUS, promised=now)


@pytest.mark.parametrize("now", [(), OTHER])
def test_where_bytes_of_any_mirror_may_be_stored_a_validator_proves_nothing(now: tuple[Digest, ...]) -> None:
    assert not Checkpoint(STRONG, promised=PROMISED).can_resume(STRONG, promised=now)


def test_a_fresh_presigned_url_goes_on_where_a_digest_is_promised() -> None:
    fresh = Entity(size=100, has_ranges=True, etag='"another server"')
    assert Checkpoint(STRONG, promised=PROMISED).can_resume(fresh, promised=PROMISED)
    assert not Checkpoint(STRONG, promised=()).can_resume(fresh, promised=())


@given(checkpoints, entities)
def test_bytes_of_another_or_unknown_size_are_never_gone_on_from(checkpoint: Checkpoint, entity: Entity) -> None:
    if any(checkpoint.can_resume(entity, promised=promised) for promised in (PROMISED, OTHER, ())):
        assert checkpoint.entity.size == entity.size is not None


@given(checkpoints, entities)
def test_without_a_digest_only_the_same_strong_validator_resumes(checkpoint: Checkpoint, entity: Entity) -> None:
    if checkpoint.can_resume(entity, promised=()):
        assert checkpoint.entity.validator == entity.validator is not None


def test_stored_ranges_survive_as_a_set() -> None:
    stored = RangeSet.of([ByteRange(0, 10), ByteRange(20, 30)])
    read = Checkpoint.decode(Checkpoint(STRONG, promised=PROMISED, stored=stored).encode())
    assert read is not None
    assert read.stored == stored
