"""What counts as reading from a volume."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.backing import backs

DISK = "/pool/deb12"


@pytest.mark.parametrize(
    "reference",
    [
        DISK,
        "deb12",
        "../pool/deb12",
        "file:/pool/deb12",
        "/pool/./deb12",
        json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": DISK}}).join(("json:", "")),
        json.dumps({"file.filename": DISK}).join(("json:", "")),
    ],
)
def test_a_reference_to_the_volume_in_any_form(reference: str) -> None:
    assert backs(reference, folder="/pool", path=DISK)


@pytest.mark.parametrize("reference", ["", "deb13", "/other/deb12", "nbd://host/deb12", "json:{", 'json:{"driver": 1}'])
def test_other_references(reference: str) -> None:
    assert not backs(reference, folder="/pool", path=DISK)


@given(st.text(max_size=60).filter(lambda text: "deb12" not in text), st.booleans())
def test_no_reference_is_too_strange(reference: str, is_json: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    assert not backs(f"json:{reference}" if is_json else reference, folder="/pool", path=DISK)


@pytest.mark.parametrize("start", ["[", '{"file":'])
def test_a_description_that_is_nested_too_deeply_names_nothing(start: str) -> None:
    assert not backs("json:" + start * 100_000, folder="/pool", path=DISK)


descriptions = st.recursive(
    st.just(DISK),
    lambda inner: st.dictionaries(st.text(), inner, min_size=1) | st.lists(inner, min_size=1),
    max_leaves=5,
)


@given(descriptions)
def test_the_volume_is_found_however_deep_in_a_description(description: object) -> None:
    assert backs(f"json:{json.dumps(description)}", folder="/pool", path=DISK)
