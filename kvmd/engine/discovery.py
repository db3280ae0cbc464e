"""Looks for a checksum where the event has none: in files beside the image, signed by a key that the host knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from urllib.parse import unquote

from kvmd.core.session import Found
from kvmd.core.sums import Candidate, candidates, find, named
from kvmd.engine.documents import read_document
from kvmd.errors import ChecksumConflictError, KvmdError, SignatureError, SourceError
from kvmd.log import get_logger
from kvmd.ports import Keyring, Sources
from kvmwire.source import SourceUrl

log = get_logger(__name__)


class Discovery:
    """Searches for one image. ``headers`` are the event's: they go to the image's own origin only."""

    def __init__(self, sources: Sources, headers: Mapping[str, str], keyring: Keyring | None) -> None:
        self._sources = sources
        self._headers = headers
        self._keyring = keyring

    async def beside(self, image: SourceUrl) -> Found:
        """Look in the usual places beside the image. Raises SignatureError for one that was signed and is not what was signed."""
        for place in candidates(image):
            try:
                found = await self._look(image, place)
            except SourceError as exc:
                log.debug("no checksum there", source=place.url, code=exc.code)
                continue
            if found.digests:
                return found
        return Found()

    async def at(self, image: SourceUrl, url: SourceUrl) -> Found:
        """Take it from this file. Raises SourceError where it cannot be read."""
        return await self._look(image, named(url))

    async def _look(self, image: SourceUrl, place: Candidate) -> Found:
        text = await self._read(image, place.url)
        name = unquote(PurePosixPath(image.path).name)
        try:
            digest = find(text, name, algorithm=place.algorithm)
        except ChecksumConflictError as exc:
            raise self._refusal(place, exc.message) from exc
        if digest is None:
            return Found()
        return Found((digest,), str(place.url), is_vouched=await self._is_signed(image, place, text))

    async def _is_signed(self, image: SourceUrl, place: Candidate, text: bytes) -> bool:
        """Whether a key of the keyring has signed it. Raises SignatureError where a signature does not fit."""
        if self._keyring is None:
            return False
        for url in place.signatures:
            try:
                signature = await self._read(image, url)
            except SourceError:
                continue
            try:
                await self._keyring.verify(text, signature)
            except SignatureError as exc:
                raise SignatureError(f"checksum file {place.url}: {exc.message}") from exc
            return True
        return False

    async def _read(self, image: SourceUrl, url: SourceUrl) -> bytes:
        headers: Mapping[str, str] = self._headers if url.origin == image.origin else {}
        return await read_document(self._sources.open(url, headers))

    def _refusal(self, place: Candidate, why: str) -> KvmdError:
        """Give the error for a file that contradicts itself: where signatures count, nobody can have signed that."""
        message = f"checksum file {place.url}: {why}"
        return SignatureError(message) if self._keyring is not None else ChecksumConflictError(message)
