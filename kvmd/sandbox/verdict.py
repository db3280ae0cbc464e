"""What qemu-img's output means. Pure; nothing in it is trusted: it comes out of a process that has read the image."""

from __future__ import annotations

import json
from typing import cast

from kvmd.core.image import ImageHead
from kvmd.errors import ConvertError, ImageInvalidError, ImageTruncatedError, ImageUnsafeError, NoSpaceError
from kvmd.ports import Inspected
from kvmd.sandbox.protocol import Answer, Run

LEAKS_ONLY = 3
"""Exit code of ``qemu-img check`` where space is wasted and all is right otherwise."""
NOT_CHECKABLE = 63
"""Exit code for a format that cannot be checked."""
_BEYOND = "exceeding the end of the file"
_LONGEST_SHOWN = 400
_LIMITS = {"time": "did not end in time and was killed", "output": "wrote without end and was killed"}
_FULL = ("No space left on device", "Disk quota exceeded")
_ELSEWHERE = ("backing-filename", "full-backing-filename", "backing-image")
_WORTH = "Check the image where it comes from with `qemu-img check`, and publish it anew."


def judge(answer: Answer, image: ImageHead) -> Inspected:
    """Tell whether qemu-img finds the image whole. Raises ImageInvalidError, ImageTruncatedError or ImageUnsafeError."""
    if answer.problem:
        raise ImageInvalidError(f"the inspector could not look at the image: {answer.problem}; refused.")
    for verb, run in zip(("info", "check"), answer.runs, strict=False):
        _check_end(verb, run, allowed=(0, LEAKS_ONLY, NOT_CHECKABLE) if verb == "check" else (0,))
    if len(answer.runs) != 2:  # noqa: PLR2004 - info and check
        raise ImageInvalidError("the inspector gave no whole answer; refused.")
    info, check = answer.runs
    _check_described(_table("info", info), image)
    if check.exit_code == NOT_CHECKABLE:
        return Inspected()
    counts = _table("check", check)
    if counts.get("check-errors") != 0 or counts.get("corruptions", 0) != 0:
        raise ImageInvalidError(f"qemu-img check found errors in the image: {_shown(check)}; refused.", hint=_WORTH)
    leaks = counts.get("leaks", 0)
    return Inspected(leaks=leaks if isinstance(leaks, int) else 0)


def measured(answer: Answer) -> int:
    """Give what ``qemu-img measure`` found. Raises ConvertError."""
    try:
        required = _table("measure", _only_run("measure", answer)).get("required")
    except ImageInvalidError as exc:
        raise ConvertError(exc.message) from exc
    if not isinstance(required, int) or required < 0:
        raise ConvertError(f"qemu-img measure gave no size: {_printable(required)}; the image was not converted.")
    return required


def judge_conversion(answer: Answer) -> None:
    """Raise ConvertError, or NoSpaceError, where the image was not converted."""
    _only_run("convert", answer)


def _only_run(verb: str, answer: Answer) -> Run:
    if answer.problem or len(answer.runs) != 1:
        why = answer.problem or "it gave no whole answer"
        raise ConvertError(f"the inspector could not convert the image: {_printable(why)}.")
    run = answer.runs[0]
    if run.ended_for == "time":
        raise ConvertError(
            f"qemu-img {verb} made no progress for too long and was killed; the image was not converted.",
            hint="Look at the disk and its load; for a slow one raise inspector.timeout_s.",
        )
    if run.ended_for:
        raise ConvertError(f"qemu-img {verb} {_LIMITS.get(run.ended_for, 'was killed')}; the image was not converted.")
    if any(one in run.said for one in _FULL):
        raise NoSpaceError(f"the pool became full while the image was converted: {_shown(run)}; the download is kept.")
    if run.exit_code:
        how = f"was killed by signal {-run.exit_code}" if run.exit_code < 0 else f"ended with {run.exit_code}"
        raise ConvertError(f"qemu-img {verb} {how}: {_shown(run)}; the image was not converted.")
    return run


def _check_end(verb: str, run: Run, *, allowed: tuple[int, ...]) -> None:
    if run.ended_for:
        how = _LIMITS.get(run.ended_for, "was killed")
        raise ImageInvalidError(
            f"qemu-img {verb} {how}; the image is refused.",
            hint="An image that is well takes seconds. For a very large one raise inspector.timeout_s.",
        )
    if run.exit_code < 0:
        raise ImageInvalidError(
            f"qemu-img {verb} was killed by signal {-run.exit_code}; the image is refused.",
            hint="The image makes qemu-img crash or use more than inspector.memory or inspector.timeout_s allows.",
        )
    if run.exit_code in allowed:
        return
    errors = run.said.count("\n")
    if verb == "check" and 0 < run.said.count(_BEYOND) == errors:
        raise ImageTruncatedError(f"qemu-img check: {_shown(run)}; the end of the file is missing; refused.")
    raise ImageInvalidError(f"qemu-img {verb} ended with {run.exit_code}: {_shown(run)}; refused.", hint=_WORTH)


def _check_described(info: dict[str, object], image: ImageHead) -> None:
    """Compare with what the pure inspection found: where the two disagree somebody is being fooled."""
    kind, virtual_size = info.get("format"), info.get("virtual-size")
    if kind != image.format.value:
        raise ImageInvalidError(f"expected {image.format}, qemu-img says {_printable(kind)}; refused.")
    if image.virtual_size is not None and virtual_size != image.virtual_size:
        raise ImageInvalidError(
            f"the header says {image.virtual_size} bytes of virtual size, qemu-img {_printable(virtual_size)}; refused."
        )
    specific = _inner(_inner(info, "format-specific"), "data")
    if any(name in info for name in _ELSEWHERE) or "data-file" in specific:
        raise ImageUnsafeError("qemu-img says that the image needs another file; refused.")
    if specific.get("corrupt") is True:
        raise ImageInvalidError("the image is marked as corrupt; refused.", hint=_WORTH)


def _table(verb: str, run: Run) -> dict[str, object]:
    try:
        value: object = json.loads(run.told)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ImageInvalidError(f"qemu-img {verb} did not answer in JSON: {_printable(run.told)}; refused.")
    return cast("dict[str, object]", value)


def _inner(table: dict[str, object], name: str) -> dict[str, object]:
    value = table.get(name)
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _shown(run: Run) -> str:
    return _printable(run.said) or "it said nothing"


def _printable(value: object) -> str:
    """Give it in one line of letters that do nothing to a terminal."""
    text = " ".join(str(value).split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_LONGEST_SHOWN]
