"""VDI, VirtualBox's own format (VirtualBox: VDICore.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kvmd.core.image.facts import Facts, Refusal, collected
from kvmd.core.image.window import Window
from kvmd.errors import ImageInvalidError, ImageTruncatedError, ImageUnsafeError

MAGIC = b"\x7f\x10\xda\xbe"
MAGIC_OFFSET = 64

_HEADER_SIZE = 512
_VERSION = struct.Struct("<I")
_HEADER = struct.Struct("<II")  # size of the header, type
_PLACES = struct.Struct("<II")  # offsets of the block map and of the data
_DISK = struct.Struct("<QIIII16s16s16s16s")
_KINDS = {1: "dynamic", 2: "fixed", 3: "undo", 4: "differencing"}
_WHOLE = frozenset({1, 2})
_VERSION_1_1 = 0x00010001
_FLATTEN = "Clone it whole (VBoxManage clonemedium), or qemu-img convert -O qcow2, and publish that."


def inspect(window: Window) -> Facts:
    """Tell what the header says. Raises ImageInvalidError."""
    raw = window.header("vdi", 0, _HEADER_SIZE)
    (version,) = _VERSION.unpack_from(raw, 68)
    _, kind = _HEADER.unpack_from(raw, 72)
    map_at, data_at = _PLACES.unpack_from(raw, 340)
    virtual_size, block, _, blocks, allocated, _, _, _, parent = _DISK.unpack_from(raw, 368)
    refusals, needs = collected(
        _sound(version, kind, has_parent=any(parent)),
        _placed(window, map_end=map_at + blocks * 4, data_end=data_at + allocated * block),
    )
    return Facts(
        version=version,
        virtual_size=virtual_size,
        variant=_KINDS.get(kind, f"unknown ({kind})"),
        cluster_size=block,
        refusals=refusals,
        needs=needs,
    )


def _sound(version: int, kind: int, *, has_parent: bool) -> Iterator[Refusal]:
    if version != _VERSION_1_1:
        yield Refusal(ImageUnsafeError, f"vdi: expected version 1.1, got {version:#x}; it cannot be inspected.")
    if kind not in _KINDS:
        yield Refusal(ImageInvalidError, f"vdi: expected type 1 to 4, got {kind}.")
    elif kind not in _WHOLE or has_parent:
        message = f"vdi: the image ({_KINDS[kind]}) needs its parent; expected one whole image."
        yield Refusal(ImageUnsafeError, message, _FLATTEN)


def _placed(window: Window, *, map_end: int, data_end: int) -> Iterator[Refusal]:
    for name, end in (("block map", map_end), ("data", data_end)):
        if window.size is not None and end > window.size:
            message = f"vdi: the {name} ends at byte {end}, the file has {window.size} bytes."
            yield Refusal(ImageTruncatedError, message)
