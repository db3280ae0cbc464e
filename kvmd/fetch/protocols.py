"""Sources of every protocol that is installed and allowed, each a plug-in."""

from __future__ import annotations

import importlib
import os
import resource
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from kvmd.errors import OpenFilesError, ProtocolUnsupportedError
from kvmd.fetch.portrule import check_port
from kvmd.log import get_logger
from kvmd.plugin import GROUP, Environment, Factory
from kvmd.ports import Access, Source, Sources
from kvmwire.source import SourceUrl

log = get_logger(__name__)

Plugin = Factory | str
"""A plug-in, or why it cannot be loaded."""


class Protocols:
    """Implements the port ``Sources`` by handing each URL to its scheme's plug-in. ``options`` are theirs, by scheme."""

    def __init__(
        self, plugins: Mapping[str, Plugin], environment: Environment, options: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._plugins = plugins
        self._environment = environment
        self._options = options
        self._sources: dict[Factory, Sources] = {}

    def open(self, url: SourceUrl, access: Access) -> Source:
        """See the port. Raises ProtocolUnsupportedError for a scheme that nothing which could be loaded serves."""
        check_port(url, self._environment)
        return self._of(url).open(url, access)

    async def close(self) -> None:
        """Close what every plug-in has open."""
        async with AsyncExitStack() as stack:
            for sources in self._sources.values():
                stack.push_async_callback(sources.close)
        self._sources.clear()

    def _of(self, url: SourceUrl) -> Sources:
        scheme = url.origin.scheme
        factory = self._plugins.get(scheme)
        if factory is None:
            raise ProtocolUnsupportedError(
                f"source {url}: nothing that is installed and allowed on this host serves {scheme}; "
                f"there is {', '.join(sorted(self._plugins)) or 'none: install kvmd again'}.",
                hint="Use another source, or install a plug-in for the protocol on the host.",
            )
        if isinstance(factory, str):
            raise ProtocolUnsupportedError(
                f"source {url}: the plug-in for {scheme} cannot be loaded: {factory}.",
                hint="Install what the plug-in needs; its documentation says what that is.",
            )
        if factory not in self._sources:
            self._sources[factory] = factory(replace(self._environment, options=self._options.get(scheme, {})))
        return self._sources[factory]


def load_plugins(schemes: Collection[str]) -> dict[str, Plugin]:
    """Load the plug-ins of these schemes; of two for one scheme that of the package whose name comes first. Blocking.

    Raises OpenFilesError where this process may not open the files that name them.
    """
    try:
        entries = entry_points(group=GROUP)
        if (
            not entries
        ):  # not even ours: importlib takes a folder that may not be opened for an empty one, and remembers it
            importlib.invalidate_caches()
            os.close(os.open(os.devnull, os.O_RDONLY))
            entries = entry_points(group=GROUP)
    except OSError as exc:
        raise OpenFilesError("looking for plug-ins", limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0]) from exc
    found = sorted(entries, key=lambda entry: entry.dist.name if entry.dist else "", reverse=True)
    return {entry.name: _load(entry) for entry in found if entry.name in schemes}


def _load(entry: EntryPoint) -> Plugin:
    try:
        factory: Factory = entry.load()
    except ImportError as exc:
        log.error("plug-in not loaded", exc=exc, scheme=entry.name, plugin=entry.value)
        return f"{entry.value}: {exc}"
    except Exception as exc:  # noqa: BLE001 - foreign code: whatever it raises, the host goes on without it
        log.unexpected("plug-in not loaded", exc, scheme=entry.name, plugin=entry.value)
        return f"{entry.value}: {type(exc).__name__}: {exc}"
    return factory
