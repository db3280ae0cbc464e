"""Which plug-in serves a URL, and what becomes of those that cannot be loaded."""

from __future__ import annotations

import importlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kvmd.config.settings import DENIED_PORTS
from kvmd.core.addresses import AddressPolicy
from kvmd.errors import ConfigError, OpenFilesError, ProtocolUnsupportedError, UrlForbiddenError
from kvmd.fetch.http import HttpSource
from kvmd.fetch.http import sources as http
from kvmd.fetch.protocols import Protocols, load_plugins
from kvmd.plugin import Environment
from kvmd.ports import Access, Source, Sources
from kvmwire.source import SourceUrl

HTTP, TAPE = SourceUrl.parse("http://127.0.0.1/disk"), SourceUrl.parse("tape://library/disk")
Package = Callable[[str, str, str], None]


class Tapes:
    """A plug-in that counts how often it is closed, and whose ``open`` tells what it was given."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.closed = 0

    def open(self, url: SourceUrl, access: Access) -> Source:
        raise ConfigError(f"{url} {sorted(access.headers)} {dict(self.environment.options)}")

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def environment() -> Iterator[Environment]:
    with ThreadPoolExecutor(1) as executor:
        yield Environment(AddressPolicy((), ()), executor)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Give a function that installs a package: its name, its entry points, and the source of its module."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, entry_points: str, source: str) -> None:
        facts = tmp_path / f"{name}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[kvmd.protocols]\n{entry_points}\n")
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()

    yield install
    for fresh in set(sys.modules) - before:
        if getattr(sys.modules[fresh], "__file__", None) and str(tmp_path) in str(sys.modules[fresh].__file__):
            del sys.modules[fresh]


def test_the_built_in_protocols_are_plug_ins() -> None:
    assert load_plugins({"http", "https"}) == {"http": http, "https": http}


def test_what_is_not_allowed_is_not_even_imported(package: Package) -> None:
    package("taped", "tape = taped:sources", "raise AssertionError('imported')")
    assert set(load_plugins({"http"})) == {"http"}


def test_of_two_plug_ins_that_of_the_first_name_is_used(package: Package) -> None:
    for name in ("b_tape", "a_tape", "c_tape"):
        package(name, f"tape = {name}:sources", f"def sources(environment): return {name!r}")
    assert getattr(load_plugins({"tape"})["tape"], "__module__", "") == "a_tape"


@pytest.mark.parametrize(
    ("entry_point", "source", "why"),
    [
        ("taped:sources", "import a_library_that_is_not_there", "No module named 'a_library_that_is_not_there'"),
        (
            "taped:sources",
            "raise ImportError('install it with: pip install tapes')",
            "install it with: pip install tapes",
        ),
        ("taped:sources", "1 / 0", "ZeroDivisionError: division by zero"),
        ("taped:sources", "def sources(:", "SyntaxError: invalid syntax"),
        ("taped:factory", "sources = 1", "AttributeError: module 'taped' has no attribute 'factory'"),
        ("tapes:sources", "sources = 1", "No module named 'tapes'"),
    ],
)
def test_a_plug_in_that_cannot_be_loaded_tells_why_and_hurts_nobody(
    package: Package, environment: Environment, entry_point: str, source: str, why: str
) -> None:
    package("taped", f"tape = {entry_point}", source)
    protocols = Protocols(load_plugins({"http", "tape"}), environment, {})
    with pytest.raises(ProtocolUnsupportedError) as caught:
        protocols.open(TAPE, Access())
    assert f"source {TAPE}: the plug-in for tape cannot be loaded: {entry_point}: {why}" in caught.value.message
    assert isinstance(protocols.open(HTTP, Access()), HttpSource)


def test_only_what_nobody_foresaw_is_logged_with_its_traceback(
    package: Package, caplog: pytest.LogCaptureFixture
) -> None:
    package("taped", "tape = taped:sources", "import a_library_that_is_not_there")
    package("diskd", "disk = diskd:sources", "1 / 0")
    load_plugins({"tape", "disk"})
    facts = {record.kvmd_fields["scheme"]: record.kvmd_fields for record in caplog.records}  # type: ignore[attr-defined]  # ours
    assert ("traceback" in facts["tape"], "traceback" in facts["disk"]) == (False, True)


def test_an_unknown_scheme_is_told_with_those_that_there_are(environment: Environment) -> None:
    protocols = Protocols({"https": http, "http": http}, environment, {})
    with pytest.raises(ProtocolUnsupportedError, match="serves tape; there is http, https"):
        protocols.open(TAPE, Access())


def test_a_plug_in_gets_the_options_of_its_scheme_alone(environment: Environment) -> None:
    protocols = Protocols({"tape": Tapes}, environment, {"tape": {"drive": 1}, "other": {"drive": 2}})
    with pytest.raises(ConfigError, match=r"tape://library/disk \['A'\] \{'drive': 1\}"):
        protocols.open(TAPE, Access({"A": "b"}))


async def test_each_plug_in_is_made_once_when_it_is_needed_and_closed_in_the_end(environment: Environment) -> None:
    made = list[Tapes]()

    def recording(environment: Environment) -> Sources:
        made.append(Tapes(environment))
        return made[-1]

    def another(environment: Environment) -> Sources:
        return recording(environment)

    schemes = {"tape": recording, "tapes": recording, "disk": another, "unused": Tapes}
    protocols = Protocols(schemes, environment, {})
    assert made == []
    for scheme in ("tape", "tapes", "tape", "disk"):
        with pytest.raises(ConfigError):
            protocols.open(SourceUrl.parse(f"{scheme}://a/b"), Access())
    assert len(made) == 2
    for _ in range(2):
        await protocols.close()
    assert [one.closed for one in made] == [1, 1]


def test_where_no_more_files_may_be_opened_that_is_what_is_told() -> None:
    load_plugins({"http"})  # the folders are listed once: later it is the files in them that cannot be opened
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OpenFilesError, match=f"no more than {lowest} files"):
            load_plugins({"http"})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("url", ["http://mail.test:25/", "https://shell.test:22/disk", "nfs://shell.test:22/disk"])
def test_ports_of_other_services_are_refused_before_any_plug_in_sees_them(environment: Environment, url: str) -> None:
    denied = replace(environment, denied_ports=frozenset(DENIED_PORTS))
    schemes = dict.fromkeys(("http", "https", "nfs"), Tapes)
    with pytest.raises(UrlForbiddenError, match=r"port (25|22) is not allowed"):
        Protocols(schemes, denied, {}).open(SourceUrl.parse(url), Access())
    typed = replace(denied, typed=frozenset({SourceUrl.parse(url).origin}))
    with pytest.raises(ConfigError):  # that is what the plug-in says
        Protocols(schemes, typed, {}).open(SourceUrl.parse(url), Access())
