"""What a document is built from comes back from it; what nobody meant as one is refused, whatever it is."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.manifest import LEAST_PRIORITY, Manifest, MirrorUrl, Pieces
from kvmd.core.metalink import MAX_MIRRORS, Selector, is_metalink
from kvmd.errors import MetalinkAmbiguousError, MetalinkInvalidError
from kvmwire.digest import Algorithm, Digest
from kvmwire.source import SourceUrl
from tests.kvmd.core.metalink_documents import (
    FEDORA,
    ISO,
    SEVERAL,
    V3,
    V4,
    as_version_3,
    as_version_4,
    escaped,
    read,
    v4,
)
from tests.wire.strategies import digests

source_urls = st.builds(
    "{}://{}/{}{}".format,
    st.sampled_from(["http", "https", "nfs", "HTTP"]),
    st.sampled_from(["a.example", "b.example:8080", "[2001:db8::1]"]),
    st.text(string.ascii_letters + string.digits + "._~-/@&'", max_size=20),
    st.sampled_from(["", "?token=a%20b&x=1"]),
).filter(lambda url: not is_metalink(SourceUrl.parse(url), ""))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    best_first = st.lists(st.integers(1, 100) | st.just(LEAST_PRIORITY), min_size=1, max_size=8).map(sorted)
    priorities = draw(best_first)
    raws = draw(st.lists(source_urls, min_size=len(priorities), max_size=len(priorities), unique=True))
    size = draw(st.integers(1, 2000))
    return Manifest(
        tuple(MirrorUrl(SourceUrl.parse(raw), priority) for raw, priority in zip(raws, priorities, strict=True)),
        size,
        tuple(draw(st.lists(digests, unique_by=lambda one: one.algorithm))),
        draw(st.none() | pieces_of(size)),
    )


@st.composite
def pieces_of(draw: st.DrawFn, size: int) -> Pieces:
    length = draw(st.integers(max(1, size // 5), 3000))
    count = -(-size // length)
    algorithm = draw(st.sampled_from(Algorithm))
    value = st.text("0123456789abcdef", min_size=algorithm.hex_length, max_size=algorithm.hex_length)
    return Pieces(length, tuple(Digest(algorithm, draw(value)) for _ in range(count)))


@given(manifests())
def test_a_manifest_comes_back_from_its_document(manifest: Manifest) -> None:
    assert read(as_version_4(manifest)) == manifest
    assert read(as_version_3(manifest)) == manifest


@given(manifests(), manifests(), st.booleans())
def test_each_of_two_files_comes_back_by_its_name(one: Manifest, other: Manifest, first: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    inside = [
        as_version_4(manifest).decode().partition(">")[2].removesuffix("</metalink>").replace("disk.qcow2", name)
        for manifest, name in ((one, "one"), (other, "other"))
    ]
    document = v4(*inside)
    assert read(document, Selector(None, None, "one" if first else "other")) == (one if first else other)


def read_anything(document: bytes) -> None:
    try:
        manifest = read(document)
    except (MetalinkInvalidError, MetalinkAmbiguousError) as exc:
        refusal = exc.message
    else:
        assert 0 < len(manifest.mirrors) <= MAX_MIRRORS
        assert manifest.pieces is None or manifest.pieces.covers(manifest.size or 0)
        return
    assert len(refusal) < 2000


@given(st.binary() | st.text().map(str.encode))
def test_arbitrary_bytes_are_read_or_refused(document: bytes) -> None:
    read_anything(document)


@given(
    st.sampled_from([FEDORA, ISO, SEVERAL]),
    st.lists(
        st.tuples(
            st.integers(0, 4000),
            st.integers(0, 60),
            st.binary(max_size=4)
            | st.sampled_from(
                [b"<", b">", b"</file>", b"<file>", b"<!DOCTYPE x>", b"&x;", b"\xff", b"<![CDATA[", b"-1"]
            ),
        ),
        max_size=4,
    ),
)
def test_mutated_documents_are_read_or_refused(document: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    for at, length, replacement in edits:
        document = document[:at] + replacement + document[at + length :]
    read_anything(document)


@given(
    st.recursive(
        st.text(max_size=5),
        lambda inner: st.tuples(
            st.sampled_from(
                ["file", "files", "size", "hash", "pieces", "verification", "resources", "url", "metalink"]
            ),
            st.lists(inner, max_size=4),
        ),
        max_leaves=20,
    )
)
def test_known_elements_in_any_place_are_read_or_refused(tree: object) -> None:
    def xml(node: object) -> str:
        if isinstance(node, tuple):
            return f"<{node[0]} type='md5' length='1' piece='0'>{''.join(map(xml, node[1]))}</{node[0]}>"
        return escaped(str(node))

    for namespace in (V3, V4):
        read_anything(f"<metalink xmlns='{namespace}'>{xml(tree)}</metalink>".encode(errors="replace"))
