from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.entity import Entity, strong_etag
from tests.kvmd.core.strategies import entities


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('"one"', '"one"'),
        ('""', '""'),
        ('W/"one"', None),
        ('w/"one"', None),
        ("one", None),
        ('"one', None),
        ('one"', None),
        ('"', None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_quoted_tag_without_a_prefix_is_strong(header: str | None, expected: str | None) -> None:
    assert strong_etag(header) == expected


@given(st.text())
def test_a_strong_tag_is_the_header_itself(header: str) -> None:
    assert strong_etag(header) in {header, None}


@given(entities, entities)
def test_sameness_does_not_depend_on_the_order(one: Entity, other: Entity) -> None:
    assert one.is_same(other) == other.is_same(one)
    assert one.is_surely_same(other) == other.is_surely_same(one)


@given(entities)
def test_an_entity_does_not_contradict_itself(entity: Entity) -> None:
    assert entity.is_same(entity)
    assert entity.is_surely_same(entity) == (entity.validator is not None)


@given(entities, entities)
def test_what_is_surely_the_same_does_not_contradict(one: Entity, other: Entity) -> None:
    if one.is_surely_same(other):
        assert one.is_same(other)
        assert one.size == other.size


@given(entities, st.sampled_from(["size", "etag", "last_modified"]))
def test_one_contradiction_is_enough(entity: Entity, field: str) -> None:
    base = Entity(size=7, has_ranges=True, etag='"a"', last_modified="then")
    changed = {"size": 8, "etag": '"b"', "last_modified": "now"}
    facts = {"size": 7, "etag": '"a"', "last_modified": "then"} | {field: changed[field]}
    other = Entity(has_ranges=entity.has_ranges, **facts)  # type: ignore[arg-type]  # three fields of two types
    assert not base.is_same(other)
    assert not base.is_surely_same(other)


def test_the_entity_tag_is_the_validator_before_the_date() -> None:
    assert Entity(1, has_ranges=True, etag='"a"', last_modified="then").validator == '"a"'
    assert Entity(1, has_ranges=True, last_modified="then").validator == "then"
    assert Entity(1, has_ranges=True).validator is None
