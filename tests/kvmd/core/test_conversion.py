"""Which images are converted, what must be true of the result, and the way of a session through it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvmd.core.compression import Compression
from kvmd.core.conversion import check_converted, check_convertible, is_flat
from kvmd.core.image import Facts, FoundFormat, ImageHead, ImagePolicy, inspect_head
from kvmd.core.placement import Stored
from kvmd.core.provenance import Provenance
from kvmd.core.session import (
    CheckUnused,
    Commit,
    Committed,
    Committing,
    Convert,
    Converted,
    Converting,
    Discard,
    Failed,
    Inspect,
    LookedUp,
    Probe,
    Probing,
    Ready,
    Sealed,
    Started,
    State,
    Verifying,
    Waiting,
)
from kvmd.core.transitions import step
from kvmd.errors import ContentError, ConvertError, FormatAmbiguousError
from kvmwire.codes import FailureCode
from kvmwire.images import ImageFormat
from tests.kvmd.core.session_values import SIZE, TERMS, broken, placement, stored
from tests.kvmd.core.strategies import digest
from tests.support import images

QCOW2 = images.qcow2()
IMAGE = inspect_head(QCOW2, size=len(QCOW2))
SEALED = Stored(placement("a"), IMAGE)
DISK = ImageHead(FoundFormat.RAW, Facts(virtual_size=SIZE))
MADE = Provenance((digest("a"),), None, (digest("a"),), FoundFormat.QCOW2)
RAW = Stored(placement("b"), DISK, provenance=MADE)
WANTED = replace(TERMS, is_raw=True, format=ImageFormat.QCOW2)
VERIFYING = Verifying(0, 0, is_alone=False)
CONVERTING = Converting(0, SEALED, IMAGE)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("raw", True), ("iso", True), ("luks", True), ("qcow2", False), ("vmdk", False), ("vhdx", False)],
)
def test_only_what_a_machine_would_not_see_as_it_is_becomes_raw(kind: str, *, expected: bool) -> None:
    assert is_flat(ImageHead(FoundFormat(kind))) is expected


def test_an_encrypted_image_cannot_be_converted() -> None:
    with pytest.raises(ConvertError, match="encrypted") as caught:
        check_convertible(replace(IMAGE, facts=replace(IMAGE.facts, encryption="luks")))
    assert "Publish it as raw" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "kind"),
    [(QCOW2, "qcow2"), (b"KDMV" + bytes(600), "vmdk"), (b"vhdxfile" + bytes(600), "vhdx"), (b"<html></html>", "html")],
)
def test_a_disk_whose_guest_wrote_the_head_of_another_format_to_it_is_refused(content: bytes, kind: str) -> None:
    with pytest.raises(FormatAmbiguousError, match=f"begins like {kind}"):
        check_converted(inspect_head(content, size=1 << 20), size=1 << 20, policy=ImagePolicy())


def test_a_disk_of_two_formats_is_refused() -> None:
    with pytest.raises(FormatAmbiguousError, match="raw and vhd"):
        check_converted(replace(DISK, also=(FoundFormat.VHD,)), size=SIZE, policy=ImagePolicy())


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_disc_as_a_disk_is_a_raw_disk(*, hybrid: bool) -> None:
    content = images.iso(hybrid=hybrid)
    found = check_converted(inspect_head(content, size=len(content)), size=len(content), policy=ImagePolicy())
    assert (found.format, found.virtual_size) == (FoundFormat.RAW, len(content))


def test_a_disk_that_the_policy_does_not_allow_as_raw_is_not_allowed_by_conversion() -> None:
    encrypted = ImageHead(FoundFormat.LUKS, Facts(encryption="LUKS"))
    with pytest.raises(ContentError, match="encrypted"):
        check_converted(encrypted, size=SIZE, policy=ImagePolicy())
    allowed = ImagePolicy(allow_encrypted=True)
    assert check_converted(encrypted, size=SIZE, policy=allowed).format is FoundFormat.LUKS


def test_the_way_from_sealed_to_ready() -> None:
    state, effects = step(VERIFYING, Sealed(SEALED), WANTED)
    assert (state, effects) == (CONVERTING, (Inspect(IMAGE), Convert(IMAGE)))
    state, effects = step(state, Converted(RAW), WANTED)
    assert (state, effects) == (Committing(0, RAW, DISK), (Commit(),))
    state, _ = step(state, Committed(placement("b")), WANTED)
    assert state == Ready(placement("b"), DISK, is_adopted=False, provenance=MADE)


def test_a_pool_without_files_has_it_converted_whatever_the_settings_say() -> None:
    keeps = replace(WANTED, is_raw=False)
    assert isinstance(step(VERIFYING, Sealed(SEALED, takes_only_raw=True), keeps)[0], Converting)
    assert isinstance(step(VERIFYING, Sealed(SEALED), keeps)[0], Committing)


def test_what_is_raw_stays_as_it_is() -> None:
    state, effects = step(VERIFYING, Sealed(stored("a")), replace(WANTED, format=ImageFormat.AUTO))
    assert isinstance(state, Committing)
    assert effects == (Inspect(DISK), Commit())


def test_what_it_replaces_is_looked_at_right_before_the_commit() -> None:
    old = placement("c")
    state, effects = step(replace(VERIFYING, replaces=old), Sealed(SEALED), WANTED)
    assert CheckUnused(old) not in effects
    assert step(state, Converted(RAW), WANTED)[1] == (CheckUnused(old), Commit(old))


@pytest.mark.parametrize(
    ("sealed", "code"),
    [
        (replace(SEALED, placement=placement("b")), FailureCode.CHECKSUM_MISMATCH),
        (replace(SEALED, image=replace(IMAGE, facts=Facts(encryption="luks"))), FailureCode.CONVERT),
    ],
)
def test_what_is_wrong_or_cannot_be_converted_is_not_begun(sealed: Stored, code: FailureCode) -> None:
    wanted = replace(WANTED, images=ImagePolicy(allow_encrypted=True))
    state, effects = step(VERIFYING, Sealed(sealed), wanted)
    assert isinstance(state, Failed)
    assert (state.failure.code, effects) == (code, (Discard(),))


def test_a_result_that_could_be_taken_for_something_else_is_discarded() -> None:
    state, effects = step(CONVERTING, Converted(replace(RAW, image=IMAGE)), WANTED)
    assert isinstance(state, Failed)
    assert (state.failure.code, effects) == (FailureCode.FORMAT_AMBIGUOUS, (Discard(),))


@pytest.mark.parametrize(
    ("code", "after", "effects"),
    [
        (FailureCode.CONVERT, Failed, (Discard(),)),
        (FailureCode.IMAGE_INVALID, Failed, (Discard(),)),
        (FailureCode.NO_SPACE, Waiting, ()),
        (FailureCode.INTERNAL, Waiting, ()),
    ],
)
def test_a_conversion_that_fails_keeps_the_download_where_it_may_go_better(
    code: FailureCode, after: type[State], effects: tuple[object, ...]
) -> None:
    state, ordered = step(CONVERTING, broken(code), WANTED)
    assert isinstance(state, after)
    assert ordered == effects


class TestLookingUp:
    """What is there already."""

    @staticmethod
    def looked_up(found: LookedUp, **terms: object) -> tuple[State, tuple[object, ...]]:
        """Give what follows."""
        state, _ = step(Failed(broken().failure), Started(), WANTED)
        return step(state, found, replace(WANTED, **terms))  # type: ignore[arg-type]  # the fields of Terms

    def test_a_record_that_names_the_promised_file_makes_the_volume_the_wanted_one(self) -> None:
        state, effects = self.looked_up(LookedUp(RAW))
        assert (state, effects) == (Ready(placement("b"), DISK, is_adopted=True, provenance=MADE), ())
        state, _ = self.looked_up(LookedUp(RAW), is_of_content=True)
        assert isinstance(state, Ready)

    def test_an_unpacked_volume_is_known_by_the_served_file_too(self) -> None:
        unpacked = Stored(placement("b"), IMAGE, provenance=Provenance((digest("a"),), Compression.GZIP))
        state, _ = self.looked_up(LookedUp(unpacked), is_raw=False)
        assert isinstance(state, Ready)
        by_content, _ = self.looked_up(LookedUp(unpacked), is_raw=False, is_of_content=True, expected=digest("b"))
        assert isinstance(by_content, Ready)

    def test_a_record_of_another_file_says_that_it_is_another_volume(self) -> None:
        other = replace(RAW, provenance=Provenance((digest("c"),), None, (digest("c"),), FoundFormat.QCOW2))
        state, _ = self.looked_up(LookedUp(other))
        assert isinstance(state, Failed)
        assert state.failure.code is FailureCode.EXISTS

    def test_without_a_record_nobody_knows(self) -> None:
        state, _ = self.looked_up(LookedUp(replace(RAW, provenance=None)))
        assert isinstance(state, Failed)
        assert state.failure.code is FailureCode.EXISTS

    def test_a_made_volume_that_changed_at_rest_is_told_as_such(self) -> None:
        changed = Stored(placement("d"), DISK)
        state, _ = self.looked_up(LookedUp(changed, is_ours=True, recorded=digest("b")))
        assert isinstance(state, Failed)
        assert state.failure.code is FailureCode.CHECKSUM_MISMATCH
        assert str(digest("b")) in state.failure.message

    def test_an_image_that_is_there_in_its_own_format_is_replaced_where_it_is_ours(self) -> None:
        ours = LookedUp(SEALED, is_ours=True)
        assert self.looked_up(ours) == (Probing(0, replaces=placement("a")), (CheckUnused(placement("a")), Probe()))

    @pytest.mark.parametrize("found", [LookedUp(SEALED), LookedUp(SEALED, is_ours=True, kept_for="template b")])
    def test_and_left_alone_where_it_is_not(self, found: LookedUp) -> None:
        state, effects = self.looked_up(found)
        assert isinstance(state, Failed)
        assert (state.failure.code, effects) == (FailureCode.EXISTS, ())
        assert "as qcow2, and the pool's format is raw" in state.failure.message

    def test_a_converted_volume_is_what_a_pool_that_keeps_formats_wants_too(self) -> None:
        state, _ = self.looked_up(LookedUp(RAW), is_raw=False)
        assert isinstance(state, Ready)
