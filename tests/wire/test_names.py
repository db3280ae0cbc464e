from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from kvmwire.names import EventId, Name, is_event_id, is_name
from tests.wire.strategies import event_ids, names

NO_NAMES = [
    "", ".", "..", ".hidden", "-x", "_x", "a/b", "a+b", "+", "#", "a#", "a b", "a\n", "a\0", "a\\b", "ä", "\uff41",
    "a" * 64,
]  # fmt: skip


@given(names)
def test_what_is_a_name_is_one_topic_level_and_one_file_name(name: str) -> None:
    assert is_name(name)
    assert not set("/+#\0\n ") & set(name)
    assert not name.startswith(".")


@pytest.mark.parametrize("text", NO_NAMES)
def test_what_could_break_a_topic_or_a_path_is_no_name(text: str) -> None:
    assert not is_name(text)
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(text)


@given(st.text(max_size=70) | names.map(lambda name: name + "\n"))
def test_the_predicate_and_the_field_agree(text: str) -> None:
    adapter: TypeAdapter[str] = TypeAdapter(Name)
    try:
        accepted = adapter.validate_python(text) == text
    except ValidationError:
        accepted = False
    assert accepted == is_name(text)


@given(event_ids)
def test_an_event_id_may_be_twice_as_long_as_a_name(event_id: str) -> None:
    assert is_event_id(event_id)
    assert TypeAdapter(EventId).validate_python(event_id) == event_id


@pytest.mark.parametrize("text", ["", "a" * 129, "a/b", "a\n", "#"])
def test_an_event_id_is_one_topic_level(text: str) -> None:
    assert not is_event_id(text)
