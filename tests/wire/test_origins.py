"""Which origins a pattern covers."""

from __future__ import annotations

import pytest
from hypothesis import given

from kvmwire.codes import FailureCode, WireError
from kvmwire.origins import OriginPattern
from kvmwire.source import SourceUrl
from tests.wire.strategies import origins


@pytest.mark.parametrize(
    ("pattern", "url", "is_covered"),
    [
        ("https://a.example", "https://a.example/x.qcow2", True),
        ("https://a.example", "https://A.EXAMPLE:443/x?y", True),
        ("https://a.example/", "https://a.example./x", True),
        ("https://a.example", "http://a.example/x", False),
        ("https://a.example", "https://a.example:8443/x", False),
        ("https://a.example:8443", "https://a.example:8443/x", True),
        ("https://a.example", "https://b.a.example/x", False),
        ("https://*.example", "https://a.example/x", True),
        ("https://*.example", "https://b.a.example/x", True),
        ("https://*.example", "https://example/x", False),
        ("https://*.example", "https://badexample/x", False),
        ("https://[2001:db8::1]", "https://[2001:0db8::1]/x", True),
        ("https://10.0.0.1", "https://10.0.0.1/x", True),
        ("s3://bucket", "s3://bucket/x", True),
    ],
)
def test_a_pattern_covers_its_own_origin_only(pattern: str, url: str, is_covered: bool) -> None:  # noqa: FBT001 - a table
    assert OriginPattern.parse(pattern).covers(SourceUrl.parse(url).origin) is is_covered


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.example",
        "https://",
        "https://*",
        "https://*.",
        "https://a.*.example",
        "https://*a.example",
        "https://u@a.example",
        "https://a.example/path",
        "https://a.example?x",
        "https://a.example:0",
        "https://a.example:x",
        "://a",
        "https://a//",
    ],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(WireError) as caught:
        OriginPattern.parse(text)
    assert caught.value.code is FailureCode.CREDENTIAL_INVALID


@given(origins)
def test_a_pattern_reads_back_as_itself(text: str) -> None:
    pattern = OriginPattern.parse(text)
    assert OriginPattern.parse(str(pattern)) == pattern
