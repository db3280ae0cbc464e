from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.core.admission import Policy, check_policy
from kvmd.errors import KvmdError
from kvmwire.codes import FailureCode
from kvmwire.digest import Algorithm, Digest
from kvmwire.source import SourceUrl
from kvmwire.status import Failure
from tests.wire.strategies import digests

HTTP, HTTPS = SourceUrl.parse("http://origin/image"), SourceUrl.parse("https://origin/image")


def _refusal(policy: Policy, digest: Digest | None, urls: Sequence[SourceUrl] = (HTTP, HTTPS)) -> Failure | None:
    try:
        check_policy(policy, digest=digest, urls=urls)
    except KvmdError as exc:
        return exc.failure
    return None


def test_by_default_a_checksum_is_not_required() -> None:
    assert _refusal(Policy(), None) is None


def test_a_required_checksum_is_missed() -> None:
    refusal = _refusal(Policy(require_checksum=True), None)
    assert refusal is not None
    assert refusal.code is FailureCode.POLICY
    assert "policy.require_checksum" in refusal.message
    assert "checksum" in refusal.hint


@pytest.mark.parametrize("algorithm", [Algorithm.MD5, Algorithm.SHA_1])
def test_a_weak_checksum_is_refused_unless_the_policy_allows_it(algorithm: Algorithm) -> None:
    weak = Digest(algorithm, "a" * algorithm.hex_length)
    refusal = _refusal(Policy(), weak)
    assert refusal is not None
    assert refusal.code is FailureCode.CHECKSUM_WEAK
    assert algorithm.value in refusal.message
    assert _refusal(Policy(weak_checksums=True, require_checksum=True), weak) is None


@given(digest=digests, is_required=st.booleans())
def test_a_strong_checksum_passes_whether_required_or_not(*, digest: Digest, is_required: bool) -> None:
    expected = FailureCode.CHECKSUM_WEAK if digest.algorithm.is_weak else None
    refusal = _refusal(Policy(require_checksum=is_required), digest)
    assert (refusal.code if refusal else None) == expected


def test_every_source_must_speak_an_allowed_protocol() -> None:
    refusal = _refusal(Policy(protocols=("https",)), None, (HTTPS, HTTP))
    assert refusal is not None
    assert refusal.code is FailureCode.URL_FORBIDDEN
    assert "protocol http is not among the allowed ones: https" in refusal.message


def test_a_refusal_shows_no_secret_of_the_url() -> None:
    refusal = _refusal(Policy(protocols=()), None, (SourceUrl.parse("https://origin/image?token=hunter2"),))
    assert refusal is not None
    assert "hunter2" not in refusal.message
