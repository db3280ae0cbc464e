"""Looks for a checksum where the event has none: in files beside the image, signed by a key that the host knows."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import unquote

from kvmd.core.digests import conflict
from kvmd.core.retry import is_retryable
from kvmd.core.session import Found
from kvmd.core.sums import Candidate, candidates, find, named
from kvmd.engine.documents import read_document
from kvmd.engine.job import Job, Limits
from kvmd.errors import (
    ChecksumConflictError,
    ChecksumFormatError,
    KvmdError,
    SignatureError,
    SourceError,
    SourceStalledError,
)
from kvmd.log import get_logger
from kvmd.ports import Access, Keyring, Sources
from kvmwire.digest import Digest
from kvmwire.source import Origin, SourceUrl

log = get_logger(__name__)

SEARCH_S = 5.0
"""How long a search that nobody ordered may keep a download from starting."""
REQUIRED_SEARCH_S = 30.0
_ARMOR = b"-----BEGIN PGP SIGNATURE-----"
_PACKET = 0x80
"""This bit is set in the first byte of what is OpenPGP and not armored (RFC 9580, 4.2)."""


@dataclass(frozen=True, slots=True)
class _Statement:
    """What a checksum file says of the image. ``signature`` is a detached one of ``text``, None where there is none."""

    digest: Digest
    place: Candidate
    text: bytes
    signature: bytes | None


class Discovery:
    """Searches for one image. ``access`` is the event's: its headers go to its own ``origins`` only."""

    def __init__(
        self, sources: Sources, keyring: Keyring | None, *, access: Access, origins: Collection[Origin]
    ) -> None:
        self._sources = sources
        self._keyring = keyring
        self._access = access
        self._origins = origins

    async def beside(self, image: SourceUrl, limits: Limits) -> Found:
        """Look in the usual places beside the image, a signed one before others, for a few seconds at most.

        Raises SignatureError for one that was signed and is not what was signed. Where a checksum is required and none was found, it
        raises the SourceError that may pass by itself, if any.
        """
        unsigned, is_required = Found(), limits.require_checksum
        trouble: SourceError | None = None
        end = asyncio.get_running_loop().time() + (REQUIRED_SEARCH_S if is_required else SEARCH_S)
        for place in candidates(image):
            try:
                async with asyncio.timeout_at(end):
                    statement = await self._look(image, place)
            except TimeoutError:
                trouble = SourceStalledError(
                    f"checksum file {place.url}: it did not come in time; the search was given up."
                )
                break
            except SourceError as exc:
                log.debug("no checksum there", source=place.url, code=exc.code)
                trouble = exc if is_retryable(exc.code) else trouble
                if exc.is_throttle:
                    break
                continue
            if statement is None or (statement.digest.algorithm.is_weak and not limits.weak_checksums):
                continue
            found = await self._proven(statement)
            if found.is_vouched or self._keyring is None:
                return found
            unsigned = unsigned if unsigned.digests else found
        if trouble is not None:
            log.info("search for a checksum had trouble", source=image, code=trouble.code, message=trouble.message)
            if is_required:
                raise trouble
        return unsigned

    async def at(self, image: SourceUrl, url: SourceUrl) -> Found:
        """Take it from this file. Raises SourceError where it cannot be read."""
        statement = await self._look(image, named(url))
        return Found() if statement is None else await self._proven(statement)

    async def _look(self, image: SourceUrl, place: Candidate) -> _Statement | None:
        text = await self._read(place.url)
        name = unquote(PurePosixPath(image.path).name)
        try:
            digest = find(text, name, algorithm=place.algorithm)
        except ChecksumConflictError as exc:
            raise self._refusal(place, exc.message) from exc
        return None if digest is None else _Statement(digest, place, text, await self._signature(place))

    async def _signature(self, place: Candidate) -> bytes | None:
        """Read the detached signature; what is none, such as a web page for whatever is asked, counts as if it were not there."""
        for url in place.signatures if self._keyring is not None else ():
            try:
                signature = await self._read(url)
            except SourceError:
                continue
            if signature.lstrip().startswith(_ARMOR) or (signature and signature[0] & _PACKET):
                return signature
        return None

    async def _proven(self, statement: _Statement) -> Found:
        """Give what it says, vouched for where it is signed. Raises SignatureError where the signature does not fit."""
        url, signature = statement.place.url, statement.signature
        if self._keyring is not None and signature is not None:
            try:
                await self._keyring.verify(statement.text, signature)
            except SignatureError as exc:
                raise SignatureError(f"checksum file {url}: {exc.message}") from exc
        return Found((statement.digest,), str(url), is_vouched=signature is not None)

    async def _read(self, url: SourceUrl) -> bytes:
        access = self._access if url.origin in self._origins else self._access.elsewhere
        return await read_document(self._sources.open(url, access))

    def _refusal(self, place: Candidate, why: str) -> KvmdError:
        """Give the error for a file that contradicts itself: where signatures count, nobody can have signed that."""
        message = f"checksum file {place.url}: {why}"
        return SignatureError(message) if self._keyring is not None else ChecksumConflictError(message)


async def discovered(
    job: Job, image: SourceUrl, told: Found, *, sources: Sources, keyring: Keyring | None, limits: Limits
) -> Found:
    """Add to what documents ``told`` of the image the checksum that the job names a file for, or that is found beside the image."""
    origins = {url.origin for url in job.urls}
    discovery = Discovery(sources, keyring, access=job.access, origins=origins)
    if job.checksum_url is not None:
        found = await discovery.at(image, job.checksum_url)
        if not found.digests:
            raise ChecksumFormatError(
                f"checksum file {job.checksum_url}: it has no checksum for {image}; nothing was downloaded.",
                hint="Name the file that lists this very image, or give the checksum itself.",
            )
    elif limits.discovers_checksums and (limits.require_checksum or not told.digests):
        found = await discovery.beside(image, limits)
    else:
        return told
    if not found.digests:
        return told
    for digest in found.digests:
        other = conflict(digest, told.digests)
        if other is not None:
            raise ChecksumConflictError(
                f"{found.where} says {digest}, {told.where} says {other}; nothing was downloaded."
            )
    return replace(found, digests=(*found.digests, *(one for one in told.digests if one not in found.digests)))
