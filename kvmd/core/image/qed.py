"""QED, a format that qemu gave up: recognised, and always refused."""

from __future__ import annotations

import struct

from kvmd.core.image.facts import Facts, Refusal, text_of
from kvmd.core.image.window import BeyondReachError, Window
from kvmd.errors import ImageUnsafeError

MAGIC = b"QED\0"

_HEADER = struct.Struct("<4sIIIQQQQQII")
_HAS_BACKING_FILE = 1 << 0


def inspect(window: Window) -> Facts:
    """Tell what the header says. Raises ImageInvalidError."""
    raw = window.header("qed", 0, _HEADER.size)
    _, cluster, _, _, features, _, _, _, virtual_size, backing_at, backing_length = _HEADER.unpack(raw)
    backing = ""
    if features & _HAS_BACKING_FILE:
        try:
            backing = text_of(window.read(backing_at, min(backing_length, 1023)))
        except BeyondReachError:
            backing = "(its name is not within the first bytes)"
    return Facts(
        virtual_size=virtual_size,
        cluster_size=cluster,
        references=(backing,) if backing else (),
        refusals=(
            Refusal(
                ImageUnsafeError,
                "qed images cannot be inspected; refused.",
                "Convert it: qemu-img convert -f qed -O qcow2 IMAGE NEW.qcow2.",
            ),
        ),
    )
