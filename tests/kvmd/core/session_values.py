"""States, inputs and terms of sessions: one of each, and any of each."""

from __future__ import annotations

from hypothesis import strategies as st

from kvmd.core.compression import Compression
from kvmd.core.image import Facts, FoundFormat, ImageHead, ImagePolicy, inspect_head
from kvmd.core.placement import Placement, Stored
from kvmd.core.provenance import Provenance
from kvmd.core.session import (
    Absent,
    Admitting,
    Broken,
    Cancelled,
    CancelRequested,
    Committed,
    Committing,
    Converted,
    Converting,
    Downloading,
    Failed,
    Fetched,
    Input,
    LookedUp,
    Probed,
    Probing,
    Queued,
    Ready,
    RemovalStarted,
    Removed,
    Removing,
    Sealed,
    Started,
    State,
    Terms,
    Verifying,
    Waiting,
)
from kvmwire.codes import FailureCode
from kvmwire.images import ImageFormat
from tests.kvmd.core.strategies import NOW, digest, failure, failures, jitters, moments

SIZE = 4096
IMAGE = ImageHead(FoundFormat.RAW, Facts(virtual_size=SIZE))
TERMS = Terms(volume="deb12", expected=digest("a"), format=ImageFormat.AUTO)


def placement(letter: str) -> Placement:
    return Placement("/pool/deb12", 1, 2, SIZE, 3, digest(letter))


def stored(letter: str, head: bytes = bytes(SIZE)) -> Stored:
    return Stored(placement(letter), inspect_head(head, size=SIZE))


def broken(
    code: FailureCode = FailureCode.SOURCE_UNREACHABLE, *, jitter: float = 0.5, has_progressed: bool = False
) -> Broken:
    return Broken(failure(code), NOW, jitter, has_progressed=has_progressed)


STATES: tuple[State, ...] = (
    Queued(),
    Admitting(),
    Probing(),
    Downloading(0, 0, is_alone=False, size=SIZE),
    Verifying(0, 0, is_alone=False),
    Converting(0, stored("a"), IMAGE),
    Committing(0, stored("a"), IMAGE),
    Ready(placement("a"), IMAGE, is_adopted=False),
    Waiting(1, failure(FailureCode.IO), NOW),
    Failed(failure(FailureCode.EMPTY)),
    Cancelled(failure(FailureCode.CANCELLED)),
    Removing(),
    Absent(),
)
INPUTS: tuple[Input, ...] = (
    Started(),
    RemovalStarted(),
    LookedUp(None),
    Probed(SIZE),
    Fetched(),
    Sealed(stored("a")),
    Converted(stored("a")),
    Committed(placement("a")),
    Removed(),
    broken(),
    CancelRequested(),
)

digests = st.sampled_from("abc").map(digest)
placements = st.sampled_from("abc").map(placement)
heads = st.sampled_from([bytes(64), b"", b"QFI\xfb", b"<html>"])
seen = heads.map(lambda head: inspect_head(head, size=SIZE))
made = st.builds(
    Provenance,
    st.lists(digests, min_size=1, max_size=2).map(tuple),
    st.none() | st.just(Compression.GZIP),
    st.lists(digests, max_size=1).map(tuple),
    st.none() | st.just(FoundFormat.QCOW2),
)
found = st.builds(Stored, placements, seen, provenance=st.none() | made)
counts = st.integers(0, 40)
states: st.SearchStrategy[State] = st.one_of(
    st.builds(Queued, counts),
    st.builds(Admitting, counts),
    st.builds(Probing, counts, st.integers(0, 2), st.booleans()),
    st.builds(Downloading, counts, st.integers(0, 2), st.booleans(), st.none() | st.integers(0, SIZE)),
    st.builds(Verifying, counts, st.integers(0, 2), st.booleans()),
    st.builds(Converting, counts, found, st.just(IMAGE)),
    st.builds(Committing, counts, found, st.just(IMAGE)),
    st.builds(Ready, placements, st.none() | st.just(IMAGE), st.booleans()),
    st.builds(Waiting, counts, failures, moments),
    st.builds(Failed, failures),
    st.builds(Cancelled, failures),
    st.builds(Removing, counts),
    st.builds(Absent, st.text(max_size=5)),
)
any_look = st.builds(LookedUp, st.none() | found, st.booleans(), st.none() | digests, damaged=st.none() | placements)
any_break = st.builds(Broken, failures, moments, jitters, st.booleans(), st.just(0.0) | st.floats(0, 1e12))
inputs: st.SearchStrategy[Input] = st.one_of(
    st.just(Started()),
    st.just(RemovalStarted()),
    any_look,
    st.builds(Probed, st.none() | st.integers(0, SIZE)),
    st.just(Fetched()),
    st.builds(Sealed, found, st.booleans()),
    st.builds(Converted, found),
    st.builds(Committed, placements),
    st.builds(Removed, st.text(max_size=5)),
    any_break,
    st.builds(CancelRequested, st.text(max_size=5)),
)
terms = st.builds(
    Terms,
    volume=st.just("deb12"),
    expected=st.none() | digests,
    format=st.sampled_from(ImageFormat),
    sources=st.integers(1, 3),
    images=st.sampled_from([ImagePolicy(max_virtual_size=size) for size in (0, 1, SIZE)]),
    deadline=st.none() | moments,
    is_raw=st.booleans(),
)
