from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvmd.core.manifest import LEAST_PRIORITY, MirrorUrl, Pieces
from kvmd.core.markup import MAX_DEPTH, MAX_ELEMENTS, MAX_SIZE
from kvmd.core.metalink import MAX_MIRRORS, Selector, is_metalink, parse
from kvmd.errors import MetalinkAmbiguousError, MetalinkInvalidError
from kvmwire.digest import Algorithm, Digest
from kvmwire.events import MAX_SIZE as MAX_FILE_SIZE
from kvmwire.source import SourceUrl
from tests.kvmd.core.metalink_documents import (
    ANY,
    BASE,
    FEDORA,
    ISO,
    MD5,
    SEVERAL,
    SHA_256,
    URL,
    V3,
    V4,
    file,
    read,
    urls,
    v4,
)
from tests.kvmd.core.strategies import digest


def why_invalid(document: bytes) -> str:
    with pytest.raises(MetalinkInvalidError) as caught:
        read(document)
    assert "images.example.org" in caught.value.message
    assert "secret" not in caught.value.message
    return caught.value.message


def test_a_version_3_document_of_a_distribution() -> None:
    manifest = read(FEDORA)
    assert [(mirror.url.raw, mirror.priority) for mirror in manifest.mirrors] == [
        ("https://mirror.example.de/fedora/Base.qcow2", 1),
        ("http://mirror.example.se/fedora/Base.qcow2", 3),
        ("https://mirror.example.fi/fedora/Base.qcow2", LEAST_PRIORITY),
    ]
    assert manifest.size == 583532544
    assert manifest.digests == (
        Digest(Algorithm.MD5, MD5),
        Digest(Algorithm.SHA_1, MD5 + "01234567"),
        Digest(Algorithm.SHA_256, SHA_256),
        Digest(Algorithm.SHA_512, SHA_256 * 2),
    )
    assert manifest.pieces is None


def test_a_version_4_document_with_pieces() -> None:
    manifest = read(ISO)
    assert [(mirror.url.raw, mirror.priority) for mirror in manifest.mirrors] == [
        ("https://one.example.org/distribution.iso", 1),
        ("http://two.example.org/distribution.iso?a=1&b=2", 2),
        ("http://three.example.org/distribution.iso", LEAST_PRIORITY),
    ]
    assert manifest.size == 700_000
    assert manifest.digests == (Digest(Algorithm.MD5, MD5), Digest(Algorithm.SHA_256, SHA_256))
    assert manifest.pieces == Pieces(524288, tuple(Digest(Algorithm.SHA_256, letter * 64) for letter in "45"))


def test_a_prefix_for_the_namespace_changes_nothing() -> None:
    document = f'<m:metalink xmlns:m="{V4}"><m:file name="a"><m:url>http://a.example/x</m:url></m:file></m:metalink>'
    assert urls(read(document.encode())) == ["http://a.example/x"]


def test_utf_16_is_read_by_its_mark() -> None:
    assert urls(read(v4(file()).decode().encode("utf-16"))) == ["https://one.example.org/disk.qcow2"]


@pytest.mark.parametrize("encoding", ["unicode_escape", "idna", "no-such", "utf-7", "iso-8859-1"])
def test_a_declared_encoding_is_not_looked_up(encoding: str) -> None:
    document = f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + v4(file())
    assert urls(read(document)) == ["https://one.example.org/disk.qcow2"]


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "document",
        [
            b"",
            b"\0" * 100,
            b"not XML",
            b"<metalink",
            v4(file())[:-1],
            v4(file()) + b"<metalink/>",
            b"<html><body>Log in</body></html>",
            b"<metalink><file name='a'><url>http://a.example/x</url></file></metalink>",
            b"<metalink xmlns='urn:other'><file name='a'><url>http://a.example/x</url></file></metalink>",
            f"<file xmlns='{V4}' name='a'><url>http://a.example/x</url></file>".encode(),
            v4(),
            v4(file("")),
            v4("<other>" + file() + "</other>"),
            v4(file(f"<other>{URL}</other>")),
            v4(file(f"<x:url xmlns:x='urn:other'>http://a.example/<url>{URL}</url></x:url>")),
            v4(file("<url>&undeclared;</url>")),
        ],
    )
    def test_what_is_no_metalink_or_holds_no_url(self, document: bytes) -> None:
        assert why_invalid(document)

    @pytest.mark.parametrize(
        "page", [b"<!DOCTYPE html><html><p>Log in<br></html>", b"<html><body><p>Log in<br></body></html>"]
    )
    def test_a_web_page_says_what_it_likely_is(self, page: bytes) -> None:
        with pytest.raises(MetalinkInvalidError) as caught:
            read(page)
        assert "login or an error page" in caught.value.hint

    def test_billion_laughs(self) -> None:
        entities = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 10))
        document = f"<!DOCTYPE metalink [<!ENTITY e0 'ha'>{entities}]>".encode() + v4(file("<url>&e9;</url>"))
        assert "document type" in why_invalid(document)

    @pytest.mark.parametrize(
        "doctype",
        [
            "<!DOCTYPE metalink [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>",
            "<!DOCTYPE metalink [<!ENTITY % x SYSTEM 'http://127.0.0.1/x.dtd'> %x;]>",
            "<!DOCTYPE metalink SYSTEM 'http://127.0.0.1/x.dtd'>",
            "<!DOCTYPE metalink PUBLIC '-//x' 'x'>",
            "<!DOCTYPE metalink>",
        ],
    )
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
    def test_any_document_type(self, doctype: str, encoding: str) -> None:
        document = (doctype + v4(file("<url>&x;</url>" + URL)).decode()).encode(encoding)
        assert "document type" in why_invalid(document)

    def test_more_than_a_mebibyte(self) -> None:
        document = v4(file())
        padded = document + b" " * (MAX_SIZE - len(document))
        assert urls(read(padded))
        assert str(MAX_SIZE + 1) in why_invalid(padded + b" ")

    @pytest.mark.parametrize("outside", ["", " xmlns='urn:other'"])
    def test_deep_nesting(self, outside: str) -> None:
        def nested(depth: int) -> bytes:
            return v4(file(URL + f"<x{outside}>" + "<x>" * (depth - 3) + "</x>" * (depth - 2)))

        assert urls(read(nested(MAX_DEPTH)))
        assert "nested" in why_invalid(nested(MAX_DEPTH + 1))
        assert "nested" in why_invalid(b"<x>" * 300_000)

    def test_too_many_elements(self) -> None:
        assert urls(read(v4(file(URL + "<x/>" * (MAX_ELEMENTS - 3)))))
        assert "elements" in why_invalid(v4(file(URL + "<x/>" * (MAX_ELEMENTS - 2))))

    def test_a_namespace_that_each_element_would_repeat(self) -> None:
        assert "namespace" in why_invalid(f"<x xmlns='{'u' * 400_000}'>{'<x/>' * 100_000}</x>".encode())

    @pytest.mark.parametrize(
        "size", ["-1", "", "1.5", "0x10", "1e3", "many", "٣", "1 2", str(MAX_FILE_SIZE + 1), "9" * 5000]
    )
    def test_a_size_that_no_file_has(self, size: str) -> None:
        assert "size" in why_invalid(v4(file(f"<size>{size}</size>{URL}")))

    def test_two_sizes(self) -> None:
        assert "1 and 2" in why_invalid(v4(file(f"<size>2</size><size>1</size>{URL}")))
        assert read(v4(file(f"<size>2</size><size>2</size>{URL}"))).size == 2

    def test_two_values_of_one_algorithm(self) -> None:
        hashes = f"<hash type='sha-256'>{'a' * 64}</hash><hash type='SHA256'>{'b' * 64}</hash>"
        assert "aaaa and {SHA-256}bbbb" in why_invalid(v4(file(hashes + URL)))

    def test_the_same_value_twice_is_one(self) -> None:
        hashes = f"<hash type='sha-256'>{'a' * 64}</hash><hash type='sha256'>{'A' * 64}</hash>"
        assert read(v4(file(hashes + URL))).digests == (digest("a"),)

    @pytest.mark.parametrize("value", ["", "abc", "g" * 64, "a" * 63, "a" * 40])
    def test_a_value_that_is_none_of_its_algorithm(self, value: str) -> None:
        assert "64 digits of SHA-256" in why_invalid(v4(file(f"<hash type='sha-256'>{value}</hash>{URL}")))


class TestUrls:
    @pytest.mark.parametrize(
        "text",
        [
            "ftp://a.example/x",
            "rsync://a.example/x",
            "magnet:?xt=urn:btih:0",
            "file:///etc/passwd",
            "/disk.qcow2",
            "disk.qcow2",
            "//a.example/x",
            "http://user:word@a.example/x",
            "http://2130706433/x",
            "http://a.example/%00",
            "http://a.example/a b",
            "http://a.example/ä",
            "http://",
            "",
            "https://a.example/other.meta4",
            "https://a.example/other.METALINK?x=1",
        ],
    )
    def test_what_cannot_be_downloaded_from_is_left_out(self, text: str) -> None:
        manifest = read(v4(file(f"<url priority='1'>{text}</url>{URL}")))
        assert urls(manifest) == ["https://one.example.org/disk.qcow2"]
        assert "can be downloaded" in why_invalid(v4(file(f"<url>{text}</url>")))

    def test_only_torrents_ftp_and_rsync_are_no_source(self) -> None:
        document = FEDORA.replace(b"https://mirror", b"ftp://mirror").replace(b"http://mirror", b"rsync://mirror")
        assert "none of its 4 URLs" in why_invalid(document)

    def test_an_address_is_the_policys_affair(self) -> None:
        assert urls(read(v4(file("<url>http://127.0.0.1/x</url>")))) == ["http://127.0.0.1/x"]

    def test_only_protocols_in_use_count(self) -> None:
        document = v4(file("<url>http://a.example/x</url><url>nfs://a.example/x</url><url>s3://a.example/x</url>"))
        for scheme in ("http", "nfs", "s3"):
            manifest = parse(document, BASE, selector=ANY, schemes={scheme})
            assert urls(manifest) == [f"{scheme}://a.example/x"]

    def test_ten_thousand_urls_are_trimmed_to_the_best_in_their_order(self) -> None:
        many = "".join(f"<url priority='{1 + n % 200}'>http://m{n}.example/x</url>" for n in range(10_000))
        manifest = read(v4(file(many)))
        best = [n for n in range(10_000) if n % 200 == 0] + [n for n in range(10_000) if n % 200 == 1]
        assert urls(manifest) == [f"http://m{n}.example/x" for n in best[:MAX_MIRRORS]]

    def test_what_is_left_out_takes_no_place(self) -> None:
        useless = "".join(f"<url priority='1'>ftp://m{n}.example/x</url>" for n in range(100))
        assert urls(read(v4(file(useless + URL)))) == ["https://one.example.org/disk.qcow2"]

    def test_a_url_that_is_there_twice_counts_once_and_with_its_best_priority(self) -> None:
        twice = "".join(f"<url priority='{priority}'>http://a.example/x</url>" for priority in (5, 3, 9))
        assert read(v4(file(twice))).mirrors == (MirrorUrl(SourceUrl.parse("http://a.example/x"), 3),)

    @pytest.mark.parametrize("priority", ["0", "-1", "1000000", "x", "", "1.0", "9" * 5000])
    def test_a_priority_that_cannot_be_read_is_the_least(self, priority: str) -> None:
        document = v4(file(f"<url priority='{priority}'>http://a.example/x</url>"))
        assert [mirror.priority for mirror in read(document).mirrors] == [LEAST_PRIORITY]

    @pytest.mark.parametrize(
        ("preference", "priority"), [("100", 1), ("1", 100), ("0", 101), ("101", LEAST_PRIORITY), ("x", LEAST_PRIORITY)]
    )
    def test_preference_of_version_3_is_turned_round(self, preference: str, priority: int) -> None:
        url = f"<url type='http' preference='{preference}'>http://a.example/x</url>"
        document = f"<metalink xmlns='{V3}'><files><file><resources>{url}</resources></file></files></metalink>"
        assert [mirror.priority for mirror in read(document.encode()).mirrors] == [priority]


class TestPieces:
    @staticmethod
    def of(pieces: str, size: int | None = 10) -> Pieces | None:
        given_size = "" if size is None else f"<size>{size}</size>"
        return read(v4(file(given_size + pieces + URL))).pieces

    @staticmethod
    def xml(values: Sequence[str], *, algorithm: str = "sha-256", length: str = "5") -> str:
        hashes = "".join(f"<hash>{value}</hash>" for value in values)
        return f"<pieces type='{algorithm}' length='{length}'>{hashes}</pieces>"

    def test_the_last_piece_may_be_shorter(self) -> None:
        assert self.of(self.xml(["a" * 64, "b" * 64]), 6) == Pieces(5, (digest("a"), digest("b")))

    @pytest.mark.parametrize("size", [None, 0, 5, 11])
    def test_a_set_that_does_not_cover_the_size_is_left_out(self, size: int | None) -> None:
        assert self.of(self.xml(["a" * 64, "b" * 64]), size) is None

    @pytest.mark.parametrize("length", ["0", "-5", "x", "", "9" * 30])
    def test_a_length_that_no_piece_has(self, length: str) -> None:
        assert self.of(self.xml(["a" * 64, "b" * 64], length=length)) is None

    @pytest.mark.parametrize("value", ["", "b" * 63, "g" * 64])
    def test_one_value_that_cannot_be_read_makes_a_set_useless(self, value: str) -> None:
        assert self.of(self.xml(["a" * 64, value])) is None

    def test_an_unknown_algorithm_or_no_value(self) -> None:
        assert self.of(self.xml(["a" * 48, "b" * 48], algorithm="tiger")) is None
        assert self.of(self.xml([])) is None
        assert self.of(self.xml([]), 0) is None

    def test_weak_ones_are_given_and_known_as_weak(self) -> None:
        pieces = self.of(self.xml(["a" * 40, "b" * 40], algorithm="sha-1"))
        assert pieces is not None
        assert pieces.algorithm.is_weak

    @pytest.mark.parametrize("order", [1, -1])
    def test_the_strongest_usable_set_is_taken_wherever_it_stands(self, order: int) -> None:
        sets = [
            self.xml(["a" * 40, "b" * 40], algorithm="sha-1"),
            self.xml(["c" * 64, "d" * 64]),
            self.xml(["e" * 128], algorithm="sha-512"),
        ]
        assert self.of("".join(sets[::order])) == Pieces(5, (digest("c"), digest("d")))

    @pytest.mark.parametrize(
        ("numbers", "expected"),
        [
            (("0", "1"), "ab"),
            (("1", "0"), "ba"),
            (("1", "2"), ""),
            (("0", "0"), ""),
            (("0", "-1"), ""),
            (("0", "x"), ""),
        ],
    )
    def test_version_3_numbers_its_pieces(self, numbers: tuple[str, str], expected: str) -> None:
        hashes = "".join(f"<hash piece='{n}'>{letter * 64}</hash>" for n, letter in zip(numbers, "ab", strict=True))
        document = f"""<metalink xmlns='{V3}'><files><file name='a'><size>10</size>
            <verification><pieces length='5' type='sha256'>{hashes}</pieces></verification>
            <resources><url>http://a.example/x</url></resources></file></files></metalink>"""
        pieces = read(document.encode()).pieces
        assert "".join(one.hex[0] for one in (pieces.digests if pieces else ())) == expected


class TestSeveralFiles:
    OTHER = SourceUrl.parse("https://images.example.org/all.metalink")

    @pytest.mark.parametrize(
        ("selector", "base", "chosen"),
        [
            (Selector(digest("a"), None, "x"), OTHER, "a"),
            (Selector(digest("a"), 3, "d.iso"), BASE, "a"),
            (Selector(digest("c"), 1, "d.iso"), BASE, "d"),
            (Selector(None, 1, "d.iso"), BASE, "d"),
            (Selector(None, 1, "x"), BASE, "b"),
            (Selector(None, 1, "x"), OTHER, "a"),
            (Selector(digest("c"), 2, "x"), OTHER, "b"),
            (Selector(None, None, "x"), SourceUrl.parse("http://h.example/d.iso.MetaLink"), "d"),
            (Selector(None, None, "x"), SourceUrl.parse("http://h.example/d%2Eiso.meta4"), "d"),
            (Selector(None, None, "x"), SourceUrl.parse("http://h.example/d.iso"), "d"),
        ],
    )
    def test_digest_then_name_then_the_documents_name_then_size(
        self, selector: Selector, base: SourceUrl, chosen: str
    ) -> None:
        assert urls(read(SEVERAL, selector, base)) == [f"http://m.example/{chosen}"]

    @pytest.mark.parametrize(
        "selector",
        [
            Selector(None, None, "x"),
            Selector(digest("c"), None, "c.iso"),
            Selector(None, 3, "C.ISO"),
            Selector(None, 4, ""),
        ],
    )
    def test_without_exactly_one_it_is_ambiguous(self, selector: Selector) -> None:
        with pytest.raises(MetalinkAmbiguousError, match="4 files"):
            read(SEVERAL, selector, self.OTHER)

    def test_twins_are_told_apart_by_what_comes_next(self) -> None:
        inside = f"<hash type='sha-256'>{'a' * 64}</hash><url>http://m.example/%s</url>"
        document = v4(file(inside % "a", name="a"), file(inside % "b", name="b"), file(inside % "c", name="b"), file())
        assert urls(read(document, Selector(digest("a"), None, "a"))) == ["http://m.example/a"]
        with pytest.raises(MetalinkAmbiguousError):
            read(document, Selector(digest("a"), None, "b"))

    def test_one_file_is_taken_whatever_the_selector_says(self) -> None:
        only = v4(file(f"<size>2</size><hash type='sha-256'>{'b' * 64}</hash>{URL}"))
        assert read(only, Selector(digest("a"), 1, "x")).digests == (digest("b"),)

    def test_version_3_too(self) -> None:
        files = "".join(
            f"<file name='{name}'><resources><url>http://m.example/{name}</url></resources></file>" for name in "ab"
        )
        document = f"<metalink xmlns='{V3}'><files>{files}</files></metalink>".encode()
        assert urls(read(document, Selector(None, None, "b"))) == ["http://m.example/b"]
        with pytest.raises(MetalinkAmbiguousError, match="'a', 'b'"):
            read(document)


@pytest.mark.parametrize(
    ("url", "media_type", "expected"),
    [
        ("http://a.example/x.meta4", "", True),
        ("http://a.example/x.METALINK?y=z", "text/plain", True),
        ("http://a.example/x.iso", "application/metalink4+xml", True),
        ("http://a.example/x.iso", "Application/Metalink+XML ; charset=utf-8", True),
        ("http://a.example/x.iso", "application/xml", False),
        ("http://a.example/x.iso?f=x.meta4", "", False),
        ("http://meta4.example/meta4", "", False),
        ("http://a.meta4", "", False),
        ("http://a.example/x.meta4/x.iso", "", False),
    ],
)
def test_suffix_or_content_type_say_metalink(url: str, media_type: str, *, expected: bool) -> None:
    assert is_metalink(SourceUrl.parse(url), media_type) == expected
