from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.sums import MAX_SIZE, Kind, candidates, find
from kvmd.errors import ChecksumConflictError
from kvmwire.digest import Algorithm, Digest
from kvmwire.source import MAX_URL_LENGTH, SourceUrl
from tests.kvmd.core.strategies import digest
from tests.wire.strategies import digests, urls

NAME = "disk-6.1 (cloud).qcow2"
A, B = "a" * 64, "b" * 64

UBUNTU = f"""{B} *ubuntu-24.04-server-cloudimg-amd64.img.manifest
{A} *ubuntu-24.04-server-cloudimg-amd64.img
{B} *old/ubuntu-24.04-server-cloudimg-amd64.img
"""
DEBIAN = f"{'b' * 128}  debian-12-generic-amd64.json\n{'a' * 128}  debian-12-generic-amd64.qcow2\n"
FEDORA = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# Fedora-Cloud-Base-Generic-43.x86_64.qcow2: 583532544 bytes
SHA256 (Fedora-Cloud-Base-Generic-43.x86_64.qcow2) = {A}
- -dashed line
- {B}  -escaped.iso
# Fedora-Cloud-Base-UEFI-43.x86_64.qcow2: 583532544 bytes
SHA256 (Fedora-Cloud-Base-UEFI-43.x86_64.qcow2) = {B}
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEE
-----END PGP SIGNATURE-----
"""


def found(text: str, name: str = NAME, algorithm: Algorithm | None = None) -> Digest | None:
    return find(text.encode(), name, algorithm=algorithm)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (UBUNTU, "ubuntu-24.04-server-cloudimg-amd64.img", digest("a")),
        (DEBIAN, "debian-12-generic-amd64.qcow2", Digest(Algorithm.SHA_512, "a" * 128)),
        (FEDORA, "Fedora-Cloud-Base-Generic-43.x86_64.qcow2", digest("a")),
        (FEDORA.replace("\n", "\r\n"), "Fedora-Cloud-Base-UEFI-43.x86_64.qcow2", digest("b")),
    ],
)
def test_files_of_distributions(text: str, name: str, expected: Digest) -> None:
    assert found(text, name) == expected
    assert found(text, name, expected.algorithm) == expected
    assert found(text, "other-" + name) is None


@pytest.mark.parametrize(
    "line",
    [
        f"{A}  {NAME}",
        f"{A} *{NAME}",
        f"{A}  ./{NAME}",
        f"{A} {NAME}",
        f"{A}\t{NAME}",
        f"{A.upper()}  {NAME}\r",
        f"\\{A}  {NAME}",
        f"SHA256 ({NAME}) = {A}",
        f"SHA256 (./{NAME}) = {A}",
        f"SHA-256({NAME})= {A}",
        f"SHA2-256({NAME})= {A}",
        f"sha256 ({NAME}) = {A.upper()}",
    ],
)
def test_forms_of_a_line(line: str) -> None:
    for text in (line, f"# made today\n{B}  other.iso\n{line}\nSHA256 (third.iso) = {B}\n"):
        assert found(text) == digest("a")


@pytest.mark.parametrize(
    "line",
    [
        "",
        f"{A}  {NAME}x",
        f"{A}  x{NAME}",
        f"{A}  {NAME.upper()}",
        f"{A}  {NAME} ",
        f"{A}  images/{NAME}",
        f"{A}  ../{NAME}",
        f"{A}  /{NAME}",
        f"{A}  .//{NAME}",
        f"{A}{NAME}",
        f"{A[:-1]}  {NAME}",
        f"{A}a  {NAME}",
        f"{'g' * 64}  {NAME}",
        f" {A}  {NAME}",
        f"# {A}  {NAME}",
        f"{NAME}  {A}",
        f"SHA256 ({NAME}) = {A[:-1]}",
        f"SHA256 ({NAME}) {A}",
        f"SHA256 (images/{NAME}) = {A}",
        f"TIGER ({NAME}) = {'a' * 48}",
        f"SHA512/256 ({NAME}) = {A}",
        f"- {A}  {NAME}",
    ],
)
def test_what_is_no_line_about_the_file(line: str) -> None:
    assert found(line) is None


@pytest.mark.parametrize(
    ("name", "written"), [("a\\b", "a\\\\b"), ("a\nb", "a\\nb"), ("a\rb", "a\\rb"), ("a\\nb", "a\\\\nb")]
)
def test_escaped_names(name: str, written: str) -> None:
    assert found(f"\\{A}  {written}\n", name) == digest("a")
    assert found(f"\\SHA256 ({written}) = {A}\n", name) == digest("a")
    assert found(f"{A}  {written}\n", name) is None


def test_names_need_not_be_utf_8() -> None:
    assert find(A.encode() + b"  caf\xe9.iso\n", "caf\udce9.iso", algorithm=None) == digest("a")
    assert found(f"{A}  café.iso\n", "café.iso") == digest("a")


def test_a_byte_order_mark_is_passed_over() -> None:
    assert found(f"\ufeff{A}  {NAME}\n") == digest("a")
    assert found(f"\ufeff{A}\n") == digest("a")


class TestAlgorithms:
    @pytest.mark.parametrize(
        "algorithm",
        [Algorithm.MD5, Algorithm.SHA_1, Algorithm.SHA_224, Algorithm.SHA_256, Algorithm.SHA_384, Algorithm.SHA_512],
    )
    def test_the_length_tells_one_that_is_not_named(self, algorithm: Algorithm) -> None:
        value = "a" * algorithm.hex_length
        assert found(f"{value}  {NAME}") == Digest(algorithm, value)

    def test_the_one_asked_for_is_the_one_of_lines_that_name_none(self) -> None:
        assert found(f"{A}  {NAME}", algorithm=Algorithm.BLAKE3) == Digest(Algorithm.BLAKE3, A)
        assert found(f"{A}  {NAME}", algorithm=Algorithm.SHA_512) is None

    def test_lines_of_others_are_passed_over(self) -> None:
        text = f"MD5 ({NAME}) = {'1' * 32}\nSHA256 ({NAME}) = {A}\nSHA3-256 ({NAME}) = {B}\n"
        assert found(text, algorithm=Algorithm.SHA_256) == digest("a")
        assert found(text, algorithm=Algorithm.MD5) == Digest(Algorithm.MD5, "1" * 32)
        assert found(text, algorithm=Algorithm.SHA_1) is None

    def test_without_one_the_strongest_counts(self) -> None:
        text = f"SHA512 ({NAME}) = {'5' * 128}\nSHA256 ({NAME}) = {A}\nMD5 ({NAME}) = {'1' * 32}\n"
        assert found(text) == Digest(Algorithm.SHA_512, "5" * 128)


class TestTwice:
    @pytest.mark.parametrize("second", [f"{B}  {NAME}", f"SHA256 ({NAME}) = {B}", f"{B} *./{NAME}"])
    @pytest.mark.parametrize("algorithm", [None, Algorithm.SHA_256])
    def test_two_values_for_a_name_are_a_conflict(self, second: str, algorithm: Algorithm | None) -> None:
        with pytest.raises(ChecksumConflictError, match=r"a{64} and .SHA-256.b{64}; neither"):
            found(f"{A}  {NAME}\n{A}  other\n{second}\n", algorithm=algorithm)

    def test_the_same_value_twice_is_none(self) -> None:
        assert found(f"{A}  {NAME}\nSHA256 ({NAME}) = {A.upper()}\n") == digest("a")

    def test_a_conflict_of_another_algorithm_is_not_looked_at(self) -> None:
        text = f"{A}  {NAME}\nMD5 ({NAME}) = {'1' * 32}\nMD5 ({NAME}) = {'2' * 32}\n"
        assert found(text, algorithm=Algorithm.SHA_256) == digest("a")


class TestBareValue:
    @pytest.mark.parametrize("text", [A, f"{A}\n", f"\r\n  {A.upper()} \r\n\r\n"])
    def test_it_is_about_any_name(self, text: str) -> None:
        assert found(text) == digest("a")
        assert found(text, algorithm=Algorithm.SHA3_256) == Digest(Algorithm.SHA3_256, A)

    @pytest.mark.parametrize("text", [f"{A}\n{A}\n", f"{A}\n{B}  other\n", f"# {A}", A[:-1], f"{A}z"])
    def test_only_where_it_is_alone(self, text: str) -> None:
        assert found(text) is None

    def test_it_may_be_signed(self) -> None:
        assert found(f"-----BEGIN PGP SIGNED MESSAGE-----\n\n{A}\n-----BEGIN PGP SIGNATURE-----\nx\n") == digest("a")


class TestClearSignature:
    def test_dashes_are_unescaped(self) -> None:
        assert found(FEDORA, "-escaped.iso") == digest("b")

    @pytest.mark.parametrize(
        "text",
        [
            f"\n{B}  {NAME}\n{FEDORA}",
            f"{FEDORA}{B}  {NAME}\n",
            FEDORA.replace("Hash: SHA256", f"Hash: SHA256\n{B}  {NAME}"),
            FEDORA.replace("iQIz", f"{B}  {NAME}\niQIz"),
            f"{FEDORA}-----BEGIN PGP SIGNED MESSAGE-----\n\n{B}  {NAME}\n-----BEGIN PGP SIGNATURE-----\n",
        ],
        ids=["before", "after", "headers", "signature", "second"],
    )
    def test_what_is_not_signed_is_not_read(self, text: str) -> None:
        assert found(text) is None
        assert found(text, "Fedora-Cloud-Base-Generic-43.x86_64.qcow2") == digest("a")


class TestCandidates:
    def test_those_of_the_file_and_then_those_of_its_folder(self) -> None:
        places = candidates(SourceUrl.parse("https://a.example/images/disk.qcow2"))
        assert [(one.url.raw.removeprefix("https://a.example/images/"), one.kind, one.algorithm) for one in places] == [
            ("disk.qcow2.sha256", Kind.FILE, Algorithm.SHA_256),
            ("disk.qcow2.sha512", Kind.FILE, Algorithm.SHA_512),
            ("disk.qcow2.sha256sum", Kind.FILE, Algorithm.SHA_256),
            ("disk.qcow2.CHECKSUM", Kind.FILE, None),
            ("SHA256SUMS", Kind.FOLDER, Algorithm.SHA_256),
            ("SHA512SUMS", Kind.FOLDER, Algorithm.SHA_512),
            ("CHECKSUM", Kind.FOLDER, None),
            ("sha256sum.txt", Kind.FOLDER, Algorithm.SHA_256),
            ("sha512sum.txt", Kind.FOLDER, Algorithm.SHA_512),
            ("sha256sums.txt", Kind.FOLDER, Algorithm.SHA_256),
        ]

    def test_each_has_its_own_detached_signatures(self) -> None:
        for place in candidates(SourceUrl.parse("https://a.example/disk.qcow2?token=x/y?z")):
            url = place.url.raw.removesuffix("?token=x/y?z")
            assert [one.raw for one in place.signatures] == [
                f"{url}{end}?token=x/y?z" for end in (".gpg", ".sign", ".asc")
            ]

    @pytest.mark.parametrize(
        "url", ["https://a.example", "https://a.example/", "https://a.example/images/?file=disk.qcow2"]
    )
    def test_a_folder_has_none(self, url: str) -> None:
        assert candidates(SourceUrl.parse(url)) == ()

    def test_a_url_that_may_not_be_longer_has_none(self) -> None:
        assert candidates(SourceUrl.parse("https://a.example/".ljust(MAX_URL_LENGTH, "x"))) == ()

    @given(urls)
    def test_none_leaves_the_origin(self, url: str) -> None:
        source = SourceUrl.parse(url)
        for place in candidates(source):
            assert {one.origin for one in (place.url, *place.signatures)} == {source.origin}


def test_more_than_a_mebibyte_is_not_looked_at() -> None:
    text = f"{A}  {NAME}\n"
    assert found(text.ljust(MAX_SIZE)) == digest("a")
    assert found(text.ljust(MAX_SIZE + 1)) is None


@pytest.mark.parametrize(
    "part", ["\n", " ", "a", ")", "md5 (", "md5 ()= ", "\\\\", f"{A}  \n", "-----BEGIN PGP SIGNED MESSAGE-----\n"]
)
@pytest.mark.parametrize("start", ["", "md5 (", f"\\{A}  ", "-----BEGIN PGP SIGNED MESSAGE-----\n"])
def test_no_repetition_takes_long(start: str, part: str) -> None:
    assert found((start + part * (MAX_SIZE // len(part)))[:MAX_SIZE]) is None


names = st.text(string.ascii_letters + string.digits + " .-_()=*é\\\n\r", min_size=1, max_size=20).filter(
    lambda name: not name.startswith(("./", "*", " "))
)


def escaped(name: str) -> tuple[str, str]:
    written = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return ("\\" if written != name else ""), written


def gnu(name: str, one: Digest) -> str:
    mark, written = escaped(name)
    return f"{mark}{one.hex}  {written}\n"


def bsd(name: str, one: Digest) -> str:
    mark, written = escaped(name)
    return f"{mark}{one.algorithm.replace('-', '')} ({written}) = {one.hex}\n"


@given(st.dictionaries(names, digests, min_size=1, max_size=5), st.data())
def test_each_file_is_found_in_a_list_of_all(files: dict[str, Digest], data: st.DataObject) -> None:
    text = "".join(data.draw(st.sampled_from([gnu, bsd]))(name, one) for name, one in files.items())
    for name, one in files.items():
        assert found(text, name, one.algorithm) == one


@given(st.binary() | st.text().map(str.encode), st.text(), st.none() | st.sampled_from(Algorithm))
def test_any_bytes_are_read(text: bytes, name: str, algorithm: Algorithm | None) -> None:
    for document in (text, FEDORA.encode()[: len(text) * 9] + text, f"{A}  ".encode() + text):
        find(document, name, algorithm=algorithm)
