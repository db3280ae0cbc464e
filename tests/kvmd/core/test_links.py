from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.links import MAX_DESCRIPTIONS, MAX_HEADERS_LENGTH, Links, read
from kvmd.core.manifest import LEAST_PRIORITY, Manifest, MirrorUrl
from kvmd.core.metalink import MAX_MIRRORS
from kvmwire.digest import Algorithm, Digest
from kvmwire.source import SourceUrl
from tests.kvmd.core.strategies import digest
from tests.wire.strategies import digests

BASE = SourceUrl.parse("https://download.example.org/distribution/leap.iso?x=1")
SCHEMES = frozenset({"http", "https", "nfs"})
METALINK4 = 'rel=describedby; type="application/metalink4+xml"'
NOTHING = Links(Manifest())

OPENSUSE = [
    ("Content-Type", "application/x-iso9660-image"),
    ("Link", '<https://download.example.org/distribution/leap.iso.meta4>; rel=describedby; type="application/metalink4+xml"'),
    ("Link", '<https://download.example.org/distribution/leap.iso.torrent>; rel=describedby; type="application/x-bittorrent"'),
    ("Link", "<http://ftp.example.de/pub/opensuse/distribution/leap.iso>; rel=duplicate; pri=2; geo=de"),
    ("link", "<https://mirror.example.cz/distribution/leap.iso>; rel=duplicate; pri=1; geo=cz"),
    ("Link", "<ftp://ftp.example.fr/distribution/leap.iso>; rel=duplicate; pri=3; geo=fr"),
    ("Link", "<https://mirror.example.jp/distribution/leap.iso>; rel=duplicate"),
    ("Digest", "SHA-256=" + base64.b64encode(bytes.fromhex("a" * 64)).decode()),
]  # fmt: skip


def link(*values: str) -> Links:
    return read([("Link", value) for value in values], BASE, schemes=SCHEMES)


def duplicates(*values: str) -> list[str]:
    return [mirror.url.raw for mirror in link(*values).manifest.mirrors]


def described_by(*values: str) -> list[str]:
    return [url.raw for url in link(*values).described_by]


def stated(*headers: tuple[str, str]) -> tuple[Digest, ...]:
    return read(headers, BASE, schemes=SCHEMES).manifest.digests


def b64(one: Digest) -> str:
    return base64.b64encode(bytes.fromhex(one.hex)).decode()


def test_the_headers_of_a_redirector() -> None:
    assert read(OPENSUSE, BASE, schemes=SCHEMES) == Links(
        Manifest(
            mirrors=(
                MirrorUrl(SourceUrl.parse("https://mirror.example.cz/distribution/leap.iso"), 1),
                MirrorUrl(SourceUrl.parse("http://ftp.example.de/pub/opensuse/distribution/leap.iso"), 2),
                MirrorUrl(SourceUrl.parse("https://mirror.example.jp/distribution/leap.iso"), LEAST_PRIORITY),
            ),
            digests=(digest("a"),),
        ),
        described_by=(SourceUrl.parse("https://download.example.org/distribution/leap.iso.meta4"),),
    )


def test_without_such_headers_nothing_is_told() -> None:
    assert read([], BASE, schemes=SCHEMES) == NOTHING
    assert (
        read([("Content-Type", "text/html"), ("X-Link", "<http://a.example/>; rel=duplicate")], BASE, schemes=SCHEMES)
        == NOTHING
    )


class TestLink:
    @pytest.mark.parametrize(
        "value",
        [
            "<http://a.example/x>;rel=duplicate",
            "<http://a.example/x> ; rel = duplicate",
            '<http://a.example/x>; REL="Duplicate"',
            '<http://a.example/x>; title="a, <http://b.example/>; rel=next"; rel=duplicate',
            '<http://a.example/x>; title="a \\"quoted\\" one"; rel="next duplicate"',
            "<http://a.example/x>; rel=duplicate; rel=next",
            "<http://a.example/x>; title*=UTF-8'de'n%c3%a4chstes; flag; ; rel=duplicate;",
            ", ,<http://a.example/x>; rel=duplicate, <http://b.example/x>; rel=next",
            "nonsense, <http://a.example/x>; rel=duplicate",
            '<http://b.example/x>; rel="unclosed, <http://a.example/x>; rel=duplicate',
        ],
    )
    def test_forms_of_a_duplicate(self, value: str) -> None:
        assert duplicates(value) == ["http://a.example/x"]

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "http://a.example/x; rel=duplicate",
            "<http://a.example/x>",
            "<http://a.example/x>; rel",
            "<http://a.example/x>; rel=next",
            "<http://a.example/x>; rel=next; rel=duplicate",
            "<http://a.example/x>; rel=duplicates",
            '<http://a.example/x>; title="rel=duplicate"',
            "<http://a.example/x>; rel=duplicate; anchor=http://b.example/",
            "<http://a.example/x; rel=duplicate",
            "<http://user@a.example/x>; rel=duplicate",
            "<http://[::1/x>; rel=duplicate",
            "<//[x]/>; rel=duplicate",
            "<http://a.example/x#part>; rel=duplicate",
            "<ftp://a.example/x>; rel=duplicate",
            "<http://a.example/x.meta4>; rel=duplicate",
        ],
    )
    def test_what_is_no_duplicate(self, value: str) -> None:
        assert link(value) == NOTHING

    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            ("/x.iso", "https://download.example.org/x.iso"),
            ("x.iso", "https://download.example.org/distribution/x.iso"),
            ("../x.iso?y", "https://download.example.org/x.iso?y"),
            ("//a.example/x.iso", "https://a.example/x.iso"),
            ("http://a.example/b/../x.iso?", "http://a.example/b/../x.iso?"),
        ],
    )
    def test_relative_targets_are_joined_and_absolute_ones_left_alone(self, target: str, expected: str) -> None:
        assert duplicates(f"<{target}>; rel=duplicate") == [expected]

    @pytest.mark.parametrize(
        ("pri", "expected"),
        [
            ("1", 1),
            ('"7"', 7),
            ("999999", 999999),
            ("0", LEAST_PRIORITY),
            ("-1", LEAST_PRIORITY),
            ("1000000", LEAST_PRIORITY),
            ("x", LEAST_PRIORITY),
            ("", LEAST_PRIORITY),
        ],
    )
    def test_pri_is_the_priority(self, pri: str, expected: int) -> None:
        (mirror,) = link(f"<http://a.example/x>; rel=duplicate; pri={pri}").manifest.mirrors
        assert mirror.priority == expected

    def test_the_best_are_kept(self) -> None:
        many = [f"<http://m{n}.example/x>; rel=duplicate; pri={200 - n}" for n in range(200)]
        assert duplicates(*many) == [f"http://m{n}.example/x" for n in range(199, 199 - MAX_MIRRORS, -1)]
        assert duplicates(", ".join(many)) == duplicates(*many)

    def test_headers_beyond_the_limit_are_not_looked_at(self) -> None:
        one = "<http://a.example/x>; rel=duplicate"
        assert duplicates(one, "x" * MAX_HEADERS_LENGTH, "<http://b.example/x>; rel=duplicate") == [
            "http://a.example/x"
        ]
        assert duplicates(one + "; x=" + "x" * MAX_HEADERS_LENGTH) == []

    @pytest.mark.parametrize(
        "text",
        ["<", "<>", "<a>;", '<a>;a="\\', '<a>;a="', "<a>;rel=duplicate,", "<a>; a", "<a>;a=<a>", "; ", '"<a>;rel="'],
    )
    def test_no_repetition_takes_long(self, text: str) -> None:
        link(text * (MAX_HEADERS_LENGTH // len(text)))


class TestDescribedBy:
    @pytest.mark.parametrize(
        "value",
        [
            f"<x.meta4>; {METALINK4}",
            "<x.meta4>; rel=describedby",
            '<x.meta4>; rel="describedby"; type=application/metalink4+xml',
        ],
    )
    def test_forms(self, value: str) -> None:
        assert described_by(value) == ["https://download.example.org/distribution/x.meta4"]

    @pytest.mark.parametrize(
        "value",
        [
            "<x.asc>; rel=describedby; type=application/pgp-signature",
            "<x.xml>; rel=describedby",
            "<x.meta4>; rel=next; type=application/metalink4+xml",
            f"<ftp://a.example/x.meta4>; {METALINK4}",
            f"<x.meta4>; {METALINK4}; anchor=/other.iso",
        ],
    )
    def test_what_does_not_describe_the_file(self, value: str) -> None:
        assert link(value) == NOTHING

    def test_each_once_and_only_a_few(self) -> None:
        many = [f"<{n // 2}.meta4>; {METALINK4}" for n in range(40)]
        assert described_by(*many) == [
            f"https://download.example.org/distribution/{n}.meta4" for n in range(MAX_DESCRIPTIONS)
        ]


class TestDigests:
    def test_a_digest_header_with_several(self) -> None:
        md5, sha_1, sha_256, sha_512 = (
            Digest(a, "5" * a.hex_length)
            for a in (Algorithm.MD5, Algorithm.SHA_1, Algorithm.SHA_256, Algorithm.SHA_512)
        )
        value = f"MD5={b64(md5)},sha={b64(sha_1)}, SHA-256={b64(sha_256)} ,sha-512={b64(sha_512)},UNIXsum=30637"
        assert stated(("Digest", value)) == (md5, sha_1, sha_256, sha_512)
        assert stated(*[("digest", one) for one in value.split(",")]) == (md5, sha_1, sha_256, sha_512)

    def test_a_repr_digest_header(self) -> None:
        sha_512 = Digest(Algorithm.SHA_512, "5" * 128)
        value = f"sha-256=:{b64(digest('a'))}:;x=1, unixsum=:AAAA:, sha-512=:{b64(sha_512)}:"
        assert stated(("Repr-Digest", value)) == (digest("a"), sha_512)

    def test_a_content_digest_is_about_a_part(self) -> None:
        assert stated(("Content-Digest", f"sha-256=:{b64(digest('a'))}:")) == ()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("Digest", "sha-256"),
            ("Digest", "sha-256="),
            ("Digest", "sha-256=" + "a" * 64),
            ("Digest", "sha-256=:" + b64(digest("a")) + ":"),
            ("Digest", "md5=" + b64(digest("a"))),
            ("Digest", "sha-256=" + b64(digest("a"))[:-2] + "*="),
            ("Repr-Digest", "sha-256=" + b64(digest("a"))),
            ("Repr-Digest", "SHA-256=:" + b64(digest("a")) + ":"),
            ("Repr-Digest", "sha-256=::"),
            ("Repr-Digest", "sha-256=:a:"),
            ("Repr-Digest", "sha-256"),
        ],
    )
    def test_what_is_malformed_is_ignored(self, name: str, value: str) -> None:
        assert stated((name, value), (name, "")) == ()

    def test_padding_may_be_missing(self) -> None:
        assert stated(("Digest", "SHA-256=" + b64(digest("a")).rstrip("="))) == (digest("a"),)

    def test_both_headers_may_say_the_same(self) -> None:
        one = b64(digest("a"))
        assert stated(("Digest", f"sha-256={one}"), ("Repr-Digest", f"sha-256=:{one}:")) == (digest("a"),)

    def test_an_algorithm_they_disagree_about_is_left_out(self) -> None:
        md5 = Digest(Algorithm.MD5, "5" * 32)
        headers = [
            ("Digest", f"sha-256={b64(digest('a'))}, md5={b64(md5)}"),
            ("Repr-Digest", f"sha-256=:{b64(digest('b'))}:"),
        ]
        assert stated(*headers) == (md5,)


@given(st.lists(digests, unique_by=lambda one: one.algorithm))
def test_digests_come_back_from_either_header(several: list[Digest]) -> None:
    plain = ", ".join(f"{one.algorithm}={b64(one)}" for one in several)
    structured = ", ".join(f"{one.algorithm.lower()}=:{b64(one)}:" for one in several)
    assert stated(("Digest", plain)) == tuple(several)
    assert stated(("Repr-Digest", structured)) == tuple(several)


pieces_of_headers = st.sampled_from(
    [
        *'<>;,="\\ :/',
        "rel=duplicate",
        "rel",
        "http://a.example/x",
        "[",
        "pri=",
        "describedby",
        ".meta4",
        "sha-256=",
        ":AAAA:",
    ]
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Link", "Digest", "Repr-Digest", "X"]),
            st.text(max_size=60) | st.lists(pieces_of_headers, max_size=20).map("".join),
        ),
        max_size=8,
    )
)
def test_any_headers_are_read(headers: list[tuple[str, str]]) -> None:
    links = read(headers, BASE, schemes=SCHEMES)
    assert {mirror.url.origin.scheme for mirror in links.manifest.mirrors} <= SCHEMES
