"""What several documents tell of one file."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.manifest import LEAST_PRIORITY, Manifest, MirrorUrl, Pieces, merged, preferred
from kvmd.core.ranges import ByteRange, RangeSet
from kvmwire.digest import Algorithm, Digest
from kvmwire.source import SourceUrl
from tests.kvmd.core.strategies import digest

MD5 = Digest(Algorithm.MD5, "a" * 32)

pieces = st.builds(lambda length, count: Pieces(length, (digest(),) * count), st.integers(1, 99), st.integers(1, 5))
mirrors = st.builds(
    lambda name, priority: MirrorUrl(SourceUrl.parse(f"http://{name}.example.org/disk"), priority),
    st.sampled_from("abcd"),
    st.sampled_from([1, 2, LEAST_PRIORITY]),
)
digests = st.sampled_from([digest("a"), digest("b"), MD5, Digest(Algorithm.SHA_512, "a" * 128)])
manifests = st.builds(
    Manifest,
    mirrors=st.lists(mirrors, max_size=4).map(tuple),
    size=st.none() | st.integers(1, 9),
    digests=st.lists(digests, max_size=3, unique_by=lambda one: one.algorithm).map(tuple),
    pieces=st.none() | pieces,
)


@given(st.integers(1, 5000), st.integers(1, 999))
def test_pieces_that_cover_a_file_partition_it(size: int, length: int) -> None:
    count = -(-size // length)
    fitting = Pieces(length, (digest(),) * count)
    assert fitting.covers(size)
    assert not Pieces(length, (digest(),) * (count + 1)).covers(size)
    ranges = [fitting.range(index, size) for index in range(count)]
    assert RangeSet.of(ranges) == RangeSet((ByteRange(0, size),))
    assert sum(one.length for one in ranges) == size


@given(st.lists(manifests, max_size=4))
def test_merged_has_every_mirror_once_best_first_and_no_contradiction(told: list[Manifest]) -> None:
    both = merged(told)
    named = {mirror.url.raw for one in told for mirror in one.mirrors}
    assert sorted(mirror.url.raw for mirror in both.mirrors) == sorted(named)
    assert [m.priority for m in both.mirrors] == sorted(m.priority for m in both.mirrors)
    said = {one for manifest in told for one in manifest.digests}
    clear = {one for one in said if not any(o != one and o.algorithm is one.algorithm for o in said)}
    assert set(both.digests) == clear
    assert both.size == next((one.size for one in told if one.size is not None), None)
    assert both.pieces == next((one.pieces for one in told if one.pieces is not None), None)


@given(manifests)
def test_one_alone_and_one_told_twice_stay_what_they_are(one: Manifest) -> None:
    assert merged([one, one]) == merged([one])
    assert (merged([one]).size, merged([one]).digests, merged([one]).pieces) == (one.size, one.digests, one.pieces)


@given(manifests, manifests)
def test_hearsay_takes_nothing_away(truth: Manifest, hearsay: Manifest) -> None:
    both = preferred(truth, hearsay)
    assert set(truth.digests) <= set(both.digests)
    assert {one.algorithm for one in both.digests} == {one.algorithm for one in (*truth.digests, *hearsay.digests)}
    assert truth.size in {None, both.size}
    assert truth.pieces in {None, both.pieces}


def test_a_contradiction_among_equals_says_nothing() -> None:
    assert merged([Manifest(digests=(digest("a"), MD5)), Manifest(digests=(digest("b"),))]).digests == (MD5,)
