"""From ``s3://bucket/key`` to the HTTP URL of the object."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from kvmd.errors import UrlInvalidError, source_error
from kvmd_s3.options import Options
from kvmwire.codes import WireError
from kvmwire.source import Origin, SourceUrl

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class Location:
    """An object. ``target`` goes on the wire as it is, ``origin`` is that of the endpoint: the address policy is asked about it."""

    target: str
    origin: Origin


def locate(url: SourceUrl, options: Options) -> Location:
    """Give the object that a URL names. Raises UrlInvalidError."""
    if url.origin.port is not None:
        raise UrlInvalidError(
            f"source {url}: a port has no meaning here.", hint="Name the store in [protocols.s3] endpoint on the host."
        )
    if "?" in url.raw:
        raise UrlInvalidError(f"source {url}: a query has no meaning for s3; remove it, or write %3F.")
    bucket = url.origin.host
    if not _BUCKET.fullmatch(bucket):
        raise UrlInvalidError(f"source {url}: {bucket!a} is not the name of a bucket.")
    key = unquote_to_bytes(url.path.removeprefix("/"))
    if not key or key.endswith(b"/"):
        raise UrlInvalidError(f"source {url}: expected s3://bucket/key, with the key of one object.")
    if any(part in {b".", b".."} for part in key.split(b"/")):
        raise UrlInvalidError(f"source {url}: '.' and '..' in a key are read differently by stores; refused.")
    target = f"{_base(bucket, options)}/{quote(key, safe='/-_.~')}"
    try:
        return Location(target, SourceUrl.parse(target).origin)
    except WireError as exc:
        raise source_error(exc) from exc


def _base(bucket: str, options: Options) -> str:
    """Give the URL of a bucket. AWS's certificates do not cover buckets with a dot, so these get path style there."""
    endpoint = options.endpoint.rstrip("/") or f"https://s3.{options.region}.amazonaws.com"
    is_path_style = options.path_style
    if is_path_style is None:
        is_path_style = bool(options.endpoint) or "." in bucket
    if is_path_style:
        return f"{endpoint}/{bucket}"
    scheme, _, authority = endpoint.partition("://")
    return f"{scheme}://{bucket}.{authority}"
