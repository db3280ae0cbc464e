"""Ports that belong to other services than sources of images: they are never connected to."""

from __future__ import annotations

from kvmd.errors import UrlForbiddenError
from kvmd.plugin import Environment
from kvmwire.source import SourceUrl


def check_port(url: SourceUrl, environment: Environment) -> None:
    """Raise UrlForbiddenError where the URL's port may not be connected to: a request must not become somebody's mail."""
    if not environment.allows_port(url.origin):
        raise UrlForbiddenError(
            f"source {url}: port {url.origin.port} is not allowed by this host's policy; not dialled.",
            hint="Serve the image on another port, or take this one out of policy.denied_ports on the host.",
        )
