"""Whether an image may be used: what was found against what was wanted, and the host's policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvmd.core.image.facts import Refusal
from kvmd.core.image.inspection import ImageHead
from kvmd.core.image.signatures import PACKED, FoundFormat
from kvmd.errors import (
    FormatAmbiguousError,
    FormatMismatchError,
    ImageInvalidError,
    ImagePolicyError,
    VirtualSizeError,
)
from kvmwire.images import ImageFormat


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """What the host accepts beside plain whole images, and up to which virtual size (bytes, 0: no limit)."""

    allow_encrypted: bool = False
    allow_dirty: bool = False
    allow_snapshots: bool = True
    max_virtual_size: int = 0


_USABLE_AS_RAW = frozenset({FoundFormat.RAW, FoundFormat.ISO, FoundFormat.LUKS})  # a hybrid ISO is a disk, too
_USABLE = frozenset(FoundFormat(wanted.value) for wanted in ImageFormat if wanted is not ImageFormat.AUTO)
_PAGES = {
    FoundFormat.HTML: "a web page or an XML document",
    FoundFormat.TEXT: "a text (JSON, a message, a script)",
    FoundFormat.PDF: "a PDF document",
    FoundFormat.ELF: "a program (ELF)",
}
_CONVERTERS = {
    FoundFormat.VHD: "qemu-img convert -f vpc -O qcow2 IMAGE NEW.qcow2",
    FoundFormat.LUKS: "publish it with format raw to hosts that allow encrypted images, or decrypt it",
    FoundFormat.DMG: "qemu-img convert -f dmg -O qcow2 IMAGE NEW.qcow2",
}


def judge(found: ImageHead, wanted: ImageFormat, *, policy: ImagePolicy) -> tuple[Refusal, ...]:
    """Give every reason to refuse the image, the most telling first."""
    if stranger := _stranger(found, wanted):
        return (stranger,)
    return (
        *_ambiguity(found),
        *found.facts.refusals,
        *_mismatch(found, wanted),
        *_against_policy(found, policy),
        *_oversize(found, policy.max_virtual_size),
    )


def check(found: ImageHead, wanted: ImageFormat, *, policy: ImagePolicy) -> None:
    """Raise the first reason to refuse the image, a ContentError."""
    for refusal in judge(found, wanted, policy=policy):
        raise refusal.error


def warnings(found: ImageHead) -> tuple[str, ...]:
    """Tell what is accepted of the image and yet worth knowing."""
    snapshots, bitmaps = found.facts.snapshots, found.facts.bitmaps
    if not (snapshots or bitmaps):
        return ()
    held = f"{found.format}: the image holds {snapshots} snapshots and {bitmaps} bitmaps"
    return (f"{held}, which no machine sees; policy.allow_snapshots = false refuses such images.",)


def _stranger(found: ImageHead, wanted: ImageFormat) -> Refusal | None:
    """Give the only reason that matters where the file is no image at all."""
    if found.format in PACKED:
        message = f"expected {_expected(wanted)}, got a compressed file or an archive ({found.format}); refused."
        return Refusal(FormatMismatchError, message, "Publish the image itself, unpacked.")
    page = _PAGES.get(found.format)
    if page is None:
        return None
    return Refusal(
        FormatMismatchError,
        f"expected {_expected(wanted)}, got {page}; refused.",
        "Open the URL in a browser: it is likely a login or an error page.",
    )


def _ambiguity(found: ImageHead) -> Iterator[Refusal]:
    if found.also:
        both = " and ".join((found.format, *found.also))
        yield Refusal(FormatAmbiguousError, f"the file is {both} at once; refused.")


def _mismatch(found: ImageHead, wanted: ImageFormat) -> Iterator[Refusal]:
    if _matches(found.format, wanted):
        return
    hint = "Correct the event's format, or the URL."
    if found.format not in _USABLE:
        way = _CONVERTERS.get(found.format, f"qemu-img convert -f {found.format} -O qcow2 IMAGE NEW.qcow2")
        hint = f"Convert it: {way}; or correct the URL."
    yield Refusal(FormatMismatchError, f"expected {_expected(wanted)}, got {found.format}; refused.", hint)


def _against_policy(found: ImageHead, policy: ImagePolicy) -> Iterator[Refusal]:
    facts = found.facts
    if facts.encryption and not policy.allow_encrypted:
        message = f"the image is encrypted ({facts.encryption}), which this host's policy does not allow; refused."
        yield Refusal(ImagePolicyError, message, "Publish it decrypted, or set policy.allow_encrypted on the host.")
    if facts.is_dirty and not policy.allow_dirty:
        message = f"{found.format}: the image was not closed properly (it is marked as dirty); refused."
        hint = "Repair it where it was made: qemu-img check -r all IMAGE; or set policy.allow_dirty on the host."
        yield Refusal(ImageInvalidError, message, hint)
    if (facts.snapshots or facts.bitmaps) and not policy.allow_snapshots:
        message = (
            f"{found.format}: the image holds {facts.snapshots} snapshots and {facts.bitmaps} bitmaps, which this host's "
            "policy does not allow; refused."
        )
        hint = "Convert it, which leaves them out: qemu-img convert -O qcow2 IMAGE NEW.qcow2."
        yield Refusal(ImagePolicyError, message, hint)


def _oversize(found: ImageHead, limit: int) -> Iterator[Refusal]:
    size = found.virtual_size
    if limit and size is not None and size > limit:
        message = f"the image's virtual size is {size} bytes, policy.max_virtual_size allows {limit}; refused."
        yield Refusal(VirtualSizeError, message)


def _expected(wanted: ImageFormat) -> str:
    if wanted is ImageFormat.AUTO:
        return f"an image ({', '.join(sorted(_USABLE))})"
    return f"format {wanted}"


def _matches(found: FoundFormat, wanted: ImageFormat) -> bool:
    if wanted is ImageFormat.AUTO:
        return found in _USABLE
    if wanted is ImageFormat.RAW:
        return found in _USABLE_AS_RAW
    return found.value == wanted.value
