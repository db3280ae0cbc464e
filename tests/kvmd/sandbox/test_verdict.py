"""Whatever the inspector says, the verdict is an error of ours or that the image is sound."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.image import inspect_head
from kvmd.errors import ContentError, ImageInvalidError, ImageUnsafeError
from kvmd.ports import Inspected
from kvmd.sandbox.protocol import Answer, Request, Run
from kvmd.sandbox.verdict import judge
from tests.support import images

CONTENT = images.qcow2()
IMAGE = inspect_head(CONTENT[:65536], size=len(CONTENT))
INFO = {"format": "qcow2", "virtual-size": 16 << 20}
CHECK = {"check-errors": 0}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(
    st.sampled_from([*INFO, *CHECK, "corruptions", "leaks", "format-specific", "backing-filename"]), values, max_size=5
)
outputs = st.text(max_size=40) | (values | tables).map(json.dumps)
runs = st.builds(Run, st.integers(-64, 64), outputs, st.text(max_size=40), st.sampled_from(["", "time", "output"]))
answers = st.builds(Answer, st.lists(runs, max_size=3).map(tuple), st.booleans(), st.text(max_size=10))


def answered(info: dict[str, object], check: dict[str, object], *, exit_code: int = 0) -> Answer:
    """Give an answer of two runs."""
    return Answer((Run(0, json.dumps(info), ""), Run(exit_code, json.dumps(check), "")))


@given(answers)
def test_no_answer_breaks_the_judge(answer: Answer) -> None:
    with suppress(ContentError):
        assert isinstance(judge(answer, IMAGE), Inspected)


@given(answers)
def test_answers_survive_their_journey(answer: Answer) -> None:
    assert Answer.decode(answer.encode()) == answer


@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_message_is_a_value_error(text: bytes) -> None:
    for message in (Answer, Request):
        with suppress(ValueError):
            message.decode(text)


def test_deep_nesting_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="deeply"):
        Answer.decode(b"[" * 200_000)


def test_a_sound_image_passes() -> None:
    assert judge(answered(INFO, CHECK), IMAGE) == Inspected()
    assert judge(answered(INFO, CHECK | {"leaks": 2}, exit_code=3), IMAGE) == Inspected(leaks=2)
    assert judge(answered(INFO, {}, exit_code=63), IMAGE) == Inspected()


@pytest.mark.parametrize(
    "extra", [{"backing-filename": "/etc/shadow"}, {"format-specific": {"data": {"data-file": "/etc/shadow"}}}]
)
def test_an_image_that_needs_another_file_is_unsafe(extra: dict[str, object]) -> None:
    with pytest.raises(ImageUnsafeError):
        judge(answered(INFO | extra, CHECK), IMAGE)


@pytest.mark.parametrize("check", [{}, {"check-errors": 1}, {"check-errors": 0, "corruptions": 1}])
def test_an_exit_code_alone_proves_nothing(check: dict[str, object]) -> None:
    with pytest.raises(ImageInvalidError):
        judge(answered(INFO, check), IMAGE)
