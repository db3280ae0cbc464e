"""What a host's policy says about an image before anything is asked or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvmd.errors import ChecksumWeakError, RefusedError, UrlForbiddenError
from kvmwire.digest import Digest
from kvmwire.source import SourceUrl


@dataclass(frozen=True, slots=True)
class Policy:
    """The part of the policy that needs no look at the source. ``can_discover``: a signed checksum may yet be found."""

    require_checksum: bool = False
    can_discover: bool = False
    weak_checksums: bool = False
    protocols: Sequence[str] = ("http", "https")


def check_policy(policy: Policy, *, digest: Digest | None, urls: Sequence[SourceUrl]) -> None:
    """Raise the error that says which rule the image breaks, before a session is begun."""
    if digest is None and policy.require_checksum and not policy.can_discover:
        raise RefusedError(
            "the event has no checksum, and this host's policy.require_checksum wants one; refused.",
            hint="Publish the template with its checksum.",
        )
    if digest is not None and digest.algorithm.is_weak and not policy.weak_checksums:
        raise ChecksumWeakError(
            f"checksum: {digest.algorithm.value} is too weak for this host's policy (policy.weak_checksums); refused."
        )
    for url in urls:
        if url.origin.scheme not in policy.protocols:
            allowed = " ".join(policy.protocols)
            raise UrlForbiddenError(
                f"source {url}: the protocol {url.origin.scheme} is not among the allowed ones: {allowed}.",
                hint="Use another source, or add the protocol to policy.allowed_protocols on the host.",
            )


def check_found(digests: Sequence[Digest], *, weak_checksums: bool, require_checksum: bool, is_vouched: bool) -> None:
    """Raise the error that says why what was found of checksums, the event having none, will not do."""
    if digests and not weak_checksums and all(digest.algorithm.is_weak for digest in digests):
        raise ChecksumWeakError(
            f"checksum: the source gives {' and '.join(str(digest.algorithm) for digest in digests)} only, too weak for this "
            "host's policy (policy.weak_checksums); refused."
        )
    if require_checksum and not (digests and is_vouched):
        raise RefusedError(
            "the event has no checksum, this host's policy.require_checksum wants one, and none was found that a known key has signed; "
            "refused.",
            hint="Publish the template with its checksum.",
        )
