"""The two documents of a seed, and what a console's end looks like."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.console import TAIL, readable
from kvmd.core.seed import meta_data, user_data
from kvmwire.events import CloudInit


def test_without_documents_the_seed_still_names_the_instance() -> None:
    assert meta_data(CloudInit(), name="vm1", instance_id="i-1") == "instance-id: i-1\nlocal-hostname: vm1\n"
    assert user_data(CloudInit()).startswith("#cloud-config\n")


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("local-hostname: web\n", "instance-id: i-1\nlocal-hostname: web\n"),
        ("instance-id: mine\nlocal-hostname: web\n", "instance-id: mine\nlocal-hostname: web\n"),
        (
            "public-keys: |\n  instance-id: no\n",
            "instance-id: i-1\nlocal-hostname: vm1\npublic-keys: |\n  instance-id: no\n",
        ),
    ],
)
def test_what_the_user_says_counts(given_text: str, expected: str) -> None:
    assert meta_data(CloudInit(meta_data=given_text), name="vm1", instance_id="i-1") == expected


def test_json_is_completed_as_json() -> None:
    text = meta_data(CloudInit(meta_data='{"local-hostname": "web"}'), name="vm1", instance_id="i-1")

    assert json.loads(text) == {"instance-id": "i-1", "local-hostname": "web"}
    assert meta_data(CloudInit(meta_data="{broken"), name="vm1", instance_id="i-1") == "{broken"


def test_a_console_is_shown_without_what_steers_a_terminal() -> None:
    raw = b"\x1b[2J\x1b[01;01HGRUB\r\n\r\n\x1b]0;title\x07login:\x00 \x9b\xff\ttab\n"

    assert readable(raw) == "GRUB\nlogin: \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} tab"


@given(st.binary(max_size=3 * TAIL))
def test_a_console_of_any_bytes_stays_small_and_harmless(raw: bytes) -> None:
    text = readable(raw)

    assert len(text.encode()) <= TAIL
    assert all(c.isprintable() or c == "\n" for c in text)
