"""Which images become raw where a pool wants that, and whether what came out may be used."""

from __future__ import annotations

from dataclasses import replace

from kvmd.core.image import FoundFormat, ImageHead, ImagePolicy, check
from kvmd.errors import ConvertError, FormatAmbiguousError
from kvmwire.images import ImageFormat

_FLAT = frozenset({FoundFormat.RAW, FoundFormat.ISO, FoundFormat.LUKS})
"""Formats whose bytes are those that a machine sees."""


def is_flat(image: ImageHead) -> bool:
    """Whether the image is raw already, or an ISO, which is left as it is."""
    return image.format in _FLAT


def check_convertible(image: ImageHead) -> None:
    """Raise ConvertError for an image that cannot be read without more than itself."""
    if image.facts.encryption:
        raise ConvertError(
            f"the pool takes raw images only, and this {image.format} is encrypted ({image.facts.encryption}): without its key "
            "it cannot be converted; refused.",
            hint="Publish it as raw (LUKS), or deploy it to a pool that keeps formats.",
        )
    if not image.virtual_size:
        raise ConvertError(f"the {image.format} tells no virtual size; it was not converted.")


def check_converted(image: ImageHead, *, size: int, policy: ImagePolicy) -> ImageHead:
    """Give what the raw image of ``size`` bytes is to be known as. Raises ContentError.

    A guest may write whatever it likes to its disk, also the first bytes of a qcow2 with a backing file: whoever probes the raw
    volume would take it for that.
    """
    if not is_flat(image) or image.also:
        found = " and ".join((image.format, *image.also))
        raise FormatAmbiguousError(
            f"the content of the image begins like {found}: as a raw volume it could be taken for that; refused.",
            hint="Deploy it to a pool that keeps formats, if it is meant to be so.",
        )
    check(image, ImageFormat.RAW, policy=policy)
    is_encrypted = image.format is FoundFormat.LUKS
    return image if is_encrypted else ImageHead(FoundFormat.RAW, replace(image.facts, virtual_size=size))
