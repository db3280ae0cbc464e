"""kvmd's side of the inspector: what the ports ask for, as requests, and what the answers mean."""

from __future__ import annotations

import os
from pathlib import Path

from kvmd.core.image import FoundFormat, ImageHead
from kvmd.errors import ConvertError, ImageInvalidError
from kvmd.log import get_logger
from kvmd.ports import Inspected
from kvmd.sandbox.channel import INSTALL, LOGS, ask
from kvmd.sandbox.protocol import Answer, Request, Task
from kvmd.sandbox.verdict import judge, judge_conversion, measured

log = get_logger(__name__)

_INSPECTED = frozenset({FoundFormat.QCOW2, FoundFormat.VMDK, FoundFormat.VHDX})
"""Formats with structures that can be broken, which qemu-img knows; all others that are accepted are their bytes."""


class QemuInspector:
    """Implements the port ``Inspector``. ``memory`` is in bytes; ``timeout_s`` is for each of the two runs of qemu-img.

    ``path`` is the socket of the inspector's unit; None: every inspection is a child process of its own.
    """

    def __init__(self, path: Path | None, *, timeout_s: float, memory: int, is_required: bool) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._memory = memory
        self._is_required = is_required
        self._has_warned = False

    async def inspect(self, volume: int, image: ImageHead) -> Inspected | None:
        """See the port."""
        if image.format not in _INSPECTED:
            return None
        request = Request(image.format.value, self._timeout_s, self._memory)
        try:
            answer = await ask(self._path, request, [volume], timeout_s=2 * self._timeout_s)
        except TimeoutError:
            raise ImageInvalidError("the inspector did not answer in time; the image is refused.") from None
        except ValueError:
            raise ImageInvalidError("the inspector ended without an answer; the image is refused.", hint=LOGS) from None
        if answer.is_missing:
            self._pass_unchecked()
            return None
        return judge(answer, image)

    def _pass_unchecked(self) -> None:
        if self._is_required:
            raise ImageInvalidError(
                "qemu-img is not installed, so the image cannot be checked, and inspector.required is set; refused.",
                hint=INSTALL,
            )
        if not self._has_warned:
            self._has_warned = True
            log.warning("images are not checked by qemu-img: it is not installed", hint=INSTALL)


class QemuConverter:
    """Implements the port ``Converter``. ``memory`` is in bytes; a conversion may be without progress for ``timeout_s``.

    ``path`` is the socket of the inspector's unit; None: every conversion is a child process of its own.
    """

    def __init__(self, path: Path | None, *, timeout_s: float, memory: int) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._memory = memory

    async def measure(self, volume: int, image: ImageHead) -> int:
        """See the port."""
        request = Request(image.format.value, self._timeout_s, self._memory, Task.MEASURE)
        required = measured(await self._ask(request, [volume]))
        if image.format is FoundFormat.VHDX:  # never compressed, and qemu-img counts its zeros
            return min(required, os.fstat(volume).st_size)
        return required

    async def convert(self, volume: int, image: ImageHead, target: int, *, writes_zeros: bool) -> None:
        """See the port."""
        size = image.virtual_size or 0
        request = Request(image.format.value, self._timeout_s, self._memory, Task.CONVERT, size, writes_zeros)
        judge_conversion(await self._ask(request, [volume, target]))

    async def _ask(self, request: Request, descriptors: list[int]) -> Answer:
        try:
            answer = await ask(self._path, request, descriptors, timeout_s=request.longest_s)
        except TimeoutError:
            raise ConvertError("the inspector did not convert the image in time; it was given up.") from None
        except ValueError:
            raise ConvertError(
                "the inspector ended without an answer; the image was not converted.", hint=LOGS
            ) from None
        if answer.is_missing:
            raise ConvertError(
                "the pool takes raw images, and qemu-img, which makes them, is not installed on the host.", hint=INSTALL
            )
        return answer
