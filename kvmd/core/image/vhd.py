"""VHD, also called VPC: fixed with a footer alone, dynamic with a copy of it at the start (Microsoft: VHD 1.0)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kvmd.core.image.facts import Facts, Refusal, collected, text_of
from kvmd.core.image.window import Window
from kvmd.errors import ImageInvalidError, ImageTruncatedError, ImageUnsafeError

MAGIC = b"conectix"
FOOTER_SIZE = 512

_FOOTER = struct.Struct(">8sIIQIIIIQQIII")
_KINDS = {2: "fixed", 3: "dynamic", 4: "differencing"}
_FIXED, _DIFFERENCING = 2, 4
_PARENT_NAME = 64
_PARENT_NAME_SIZE = 512
_DYNAMIC_HEADER_SIZE = 1024
_FLATTEN = "Merge it with its parent: qemu-img convert -O qcow2 IMAGE.vhd WHOLE.qcow2, and publish that."


def has_footer(window: Window) -> bool:
    """Whether the footer stands at the end, as far as that is there."""
    if not window.is_whole or window.size is None or window.size < FOOTER_SIZE:
        return False
    return window.read(window.size - FOOTER_SIZE, len(MAGIC)) == MAGIC


def inspect(window: Window) -> Facts:
    """Tell what the footer, or its copy at the start, says. Raises ImageInvalidError."""
    is_fixed = not window.first(len(MAGIC)).startswith(MAGIC)
    at = (window.size or 0) - FOOTER_SIZE if is_fixed else 0
    raw = window.header("vhd", at, FOOTER_SIZE)
    _, _, _, dynamic_at, *_, virtual_size, _, kind, checksum = _FOOTER.unpack_from(raw)
    dynamic = window.header("vhd", dynamic_at, _DYNAMIC_HEADER_SIZE) if kind == _DIFFERENCING else b""
    parent = dynamic[_PARENT_NAME : _PARENT_NAME + _PARENT_NAME_SIZE].decode("utf-16-be", errors="replace")
    refusals, needs = collected(_sound(raw, kind, checksum), _ended(window, is_fixed=is_fixed))
    return Facts(
        virtual_size=virtual_size,
        variant=_KINDS.get(kind, f"unknown ({kind})"),
        references=(text_of(parent.encode()),) if dynamic else (),
        refusals=refusals,
        needs=needs,
    )


def _sound(raw: bytes, kind: int, checksum: int) -> Iterator[Refusal]:
    if kind == _DIFFERENCING:
        message = "vhd: a differencing image needs its parent; expected one whole image."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)
    elif kind not in _KINDS:
        yield Refusal(ImageInvalidError, f"vhd: expected type 2 to 4, got {kind}.")
    actual = ~sum(raw[:64] + raw[68:]) & 0xFFFFFFFF
    if actual != checksum:
        yield Refusal(
            ImageInvalidError, f"vhd: the footer's checksum is {checksum:#010x}, its bytes give {actual:#010x}."
        )


def _ended(window: Window, *, is_fixed: bool) -> Iterator[Refusal]:
    if window.is_whole and not is_fixed and not has_footer(window):
        yield Refusal(ImageTruncatedError, "vhd: the footer is not at the end of the file.")
