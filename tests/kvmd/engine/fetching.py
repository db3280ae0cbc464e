"""Runs real sessions from real URLs into a real folder, and checks what must hold after each of them."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TypedDict

from typing_extensions import Unpack

from kvmd.app.parts import (
    converter_of,
    disk_threads,
    environment_of,
    images_of,
    inspector_of,
    keyring_of,
    limits_of,
    open_sources,
)
from kvmd.clock import SystemClock
from kvmd.config import Settings
from kvmd.core.session import Cancelled, Failed, Ready, Started, State, Terms, Waiting
from kvmd.engine.job import Job
from kvmd.engine.runner import Edges, Listener, Session
from kvmd.engine.shaping import Shaper
from kvmd.plugin import TlsFiles
from kvmd.ports import Access
from kvmd.store.directory import DirectoryStore
from kvmd.store.staging import STAGING
from kvmd.vault import Vault
from kvmwire.digest import Digest
from kvmwire.images import ChecksumOf, ImageFormat
from kvmwire.source import SourceUrl
from kvmwire.status import Failure, Progress, SourceProgress
from tests.support.contents import Content, hexdigest
from tests.support.waiting import eventually

STALL_S = 0.4
"""Stall timeout of these tests: long against a loaded machine's pauses, short against a test."""


class SteadyClock(SystemClock):
    """Real time, and dice that always show zero: the shortest pauses."""

    def jitter(self) -> float:
        """Give 0."""
        return 0.0


@dataclass
class Outcome:
    """How a session ended, and what it said on the way."""

    state: State
    states: list[State]
    progress: list[Progress]
    path: Path

    @property
    def failure(self) -> Failure:
        """The failure that it ended with."""
        match self.state:
            case Failed(failure) | Cancelled(failure):
                return failure
            case Waiting(_, failure, _):
                return failure
            case _:
                raise AssertionError(f"expected a failure, got {self.state}")

    @property
    def code(self) -> str:
        """The failure's code, ``ready`` where there is none."""
        if isinstance(self.state, Ready):
            return "ready"
        print(self.failure.message)  # noqa: T201 - pytest shows it where an expectation fails
        return self.failure.code.value

    @property
    def sources(self) -> tuple[SourceProgress, ...]:
        """The last that was told of each source."""
        return self.progress[-1].sources


def digest_of(content: bytes | Content) -> Digest:
    """Give the SHA-256 of a content."""
    return Digest.parse("{SHA-256}" + hexdigest(content))


class Asked(TypedDict, total=False):
    """What else a deploy event can say, and the pool; and ``content``: what the volume is to hold, where that is not the file."""

    format: ImageFormat
    headers: Mapping[str, str]
    tls: TlsFiles
    credentials: Sequence[str]
    size: int
    deadline: datetime
    checksum_url: str
    content: bytes | Content
    checksum_of: ChecksumOf
    is_raw: bool


class Host:
    """A host with one pool. ``transfer``, ``policy`` and ``inspector`` are settings over those that make tests fast."""

    def __init__(
        self,
        folder: Path,
        *,
        transfer: Mapping[str, object] | None = None,
        policy: Mapping[str, object] | None = None,
        inspector: Mapping[str, object] | None = None,
    ) -> None:
        self.vault = Vault()
        self.pool = folder / "pool"
        self.pool.mkdir(parents=True, exist_ok=True)
        (folder / "outside").write_text("not kvmd's")
        self._folder = folder
        self._found: dict[str, bytes] = {}
        self.settings = Settings.model_validate(
            {
                "host": "kvm01",
                "transfer": {"stall_timeout_s": STALL_S, "connect_timeout_s": 2.0, **(transfer or {})},
                "policy": {**(policy or {})},
                "inspector": {**(inspector or {})},
            }
        )

    async def fetch(
        self, *urls: str, expected: bytes | Content | None = None, name: str = "disk.img", **asked: Unpack[Asked]
    ) -> Outcome:
        """Run one session to its end, and check what must hold after every one."""
        before, open_files = self._surroundings(), _open_files()
        self._found = {path.name: path.read_bytes() for path in self.pool.iterdir() if path.is_file()}
        outcome = await self.run(*urls, expected=expected, name=name, **asked)
        await self._check(outcome, before, open_files)
        return outcome

    async def run(
        self, *urls: str, expected: bytes | Content | None = None, name: str = "disk.img", **asked: Unpack[Asked]
    ) -> Outcome:
        """Run one session beside others: only what it made itself is checked."""
        parsed = [SourceUrl.parse(url) for url in urls]
        digest = None if expected is None else digest_of(expected)
        wanted, accepted = asked.get("format", ImageFormat.AUTO), images_of(self.settings.policy)
        terms = Terms(name, digest, wanted, len(urls), asked.get("deadline"), accepted)
        is_of_content = asked.get("checksum_of") is ChecksumOf.CONTENT
        terms = replace(terms, is_of_content=is_of_content, is_raw=asked.get("is_raw", False))
        states: list[State] = []
        progress: list[Progress] = []

        async def on_state(state: State) -> None:
            states.append(state)

        named = SourceUrl.parse(asked["checksum_url"]) if "checksum_url" in asked else None
        access = Access(asked.get("headers", {}), tuple(asked.get("credentials", ())))
        job = Job(uuid.uuid4().hex, terms, parsed, access, asked.get("size"), checksum_url=named)
        executor, clock = disk_threads(self.settings), SteadyClock()
        try:
            environment = environment_of(
                self.settings, executor, typed=parsed, tls=asked.get("tls", TlsFiles()), credentials=self.vault
            )
            async with open_sources(self.settings, environment) as sources:
                store = DirectoryStore("pool", self.pool, executor=executor)
                keyring = keyring_of(self.settings.policy, executor)
                inspector, converter = inspector_of(self.settings.inspector), converter_of(self.settings.inspector)
                limits, shaper = limits_of(self.settings), Shaper(0, clock)
                edges = Edges(sources, store, clock, limits, shaper, inspector, converter, keyring)
                state = await Session(job, edges, Listener(on_state, progress.append)).run(Started())
        finally:
            await asyncio.to_thread(executor.shutdown)
        outcome = Outcome(state, states, progress, self.pool / name)
        if isinstance(state, Ready):
            held = digest_of(asked["content"]) if "content" in asked else digest
            assert _is_right(outcome.path, state.placement.digest, held)
        else:
            assert outcome.failure.message
            assert outcome.failure.hint
        resting = [one for one in states if isinstance(one, Ready | Failed | Cancelled | Waiting)]
        assert resting == [state]
        return outcome

    def partial_files(self) -> dict[str, int]:
        """Give name and size of everything in the staging folder but the records of finished volumes."""
        staging = self.pool / STAGING
        files = [path for path in staging.iterdir() if path.suffix != ".record"] if staging.exists() else []
        return {path.name: path.stat().st_size for path in files}

    async def _check(self, outcome: Outcome, before: object, open_files: int) -> None:
        if isinstance(outcome.state, Ready):
            assert self.partial_files() == {}
        else:
            assert not outcome.path.is_file() or outcome.path.read_bytes() == self._found.get(outcome.path.name)
        assert not any(thread.name in {"kvmd-hash", "kvmd-unpack"} for thread in threading.enumerate())
        assert self._surroundings() == before
        await eventually(
            lambda: _open_files() <= open_files, timeout_s=3, what=f"at most {open_files} open files again"
        )

    def _surroundings(self) -> tuple[object, ...]:
        """Describe what no session may change: files outside the pool, other volumes."""
        outside = sorted(str(path) for path in self._folder.rglob("*") if self.pool not in {path, *path.parents})
        kept = {path.name: path.read_bytes() for path in self.pool.glob("other*")}
        return outside, kept


def _is_right(path: Path, said: Digest, expected: Digest | None) -> bool:
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.is_file() and not path.is_symlink() and actual == said.hex and expected in {None, said}


def _open_files() -> int:
    """Count open files, pipes of the event loop excluded because they come and go with it."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += not str(link.readlink()).startswith(("pipe:", "anon_inode:"))
        except FileNotFoundError:
            continue
    return count
