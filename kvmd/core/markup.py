"""The XML of a Metalink document, read into a tree within limits that hold for any bytes.

Python's expat does the reading: it fetches nothing, and an error that a handler raises stops it at once. The handlers refuse
every document type, so no entity can be declared, internal or external. What they let pass is at most ``MAX_ELEMENTS`` elements.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder  # the tree alone: nothing is parsed by it
from xml.parsers import expat

from kvmd.errors import MetalinkInvalidError
from kvmwire.source import SourceUrl

MAX_SIZE = 1 << 20
"""Largest document in bytes."""
MAX_DEPTH = 16
MAX_ELEMENTS = 1 << 15
"""Most elements of a document; 1 MiB holds some 20,000 digests of pieces."""

_MAX_NAMESPACE = 256
"""Longest name of a namespace in characters: expat repeats it in the name of each element."""
_WEB_PAGE_HINT = "Open the URL in a browser: it is likely a login or an error page."


def read(document: bytes, base: SourceUrl) -> Element:
    """Give the root element, whose name begins with its namespace and a space.

    Inside, the elements and attributes of that namespace have their local names, and elements of others are left out with
    all that is in them. The encoding is UTF-8, or UTF-16 with a byte-order mark, whatever the document says.
    Raises MetalinkInvalidError, which names ``base``, for what is not XML or is over a limit.
    """
    if len(document) > MAX_SIZE:
        raise invalid(base, f"expected at most {MAX_SIZE} bytes, got {len(document)}")
    reading = _Reading(base)
    parser = expat.ParserCreate("utf-8", " ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = reading.refuse_doctype
    parser.StartNamespaceDeclHandler = reading.check_namespace
    parser.StartElementHandler = reading.start
    parser.EndElementHandler = reading.end
    parser.CharacterDataHandler = reading.text
    try:
        parser.Parse(document, True)
    except expat.ExpatError as exc:
        raise invalid(base, f"expected XML, got something else ({exc})", hint=_WEB_PAGE_HINT) from exc
    return reading.builder.close()


def invalid(base: SourceUrl, what: str, *, hint: str | None = None) -> MetalinkInvalidError:
    """Give the error about the document at ``base``."""
    return MetalinkInvalidError(f"metalink {base}: {what}; the document was not used.", hint=hint)


class _Reading:
    """The handlers of one document, and how far it is read."""

    def __init__(self, base: SourceUrl) -> None:
        self.builder = TreeBuilder()
        self._base = base
        self._namespace = ""
        self._elements = 0
        self._depth = 0
        self._foreign_depth = 0  # that of the outermost element of another namespace; 0: not in one

    def refuse_doctype(self, name: str, _system: str | None, _public: str | None, _has_internal: int) -> None:
        hint = _WEB_PAGE_HINT if name.lower() == "html" else None
        raise invalid(self._base, f"a document type ({name[:40]!a}) is not allowed", hint=hint)

    def check_namespace(self, _prefix: str | None, namespace: str | None) -> None:
        if namespace is not None and len(namespace) > _MAX_NAMESPACE:
            raise invalid(self._base, f"a namespace has more than {_MAX_NAMESPACE} characters")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH:
            raise invalid(self._base, f"elements are nested deeper than {MAX_DEPTH}")
        if self._elements > MAX_ELEMENTS:
            raise invalid(self._base, f"it has more than {MAX_ELEMENTS} elements")
        namespace, _, local = name.rpartition(" ")
        if self._depth == 1:
            self._namespace = namespace
            self.builder.start(name, attributes)
        elif not self._foreign_depth and namespace == self._namespace:
            self.builder.start(local, attributes)
        elif not self._foreign_depth:
            self._foreign_depth = self._depth

    def end(self, name: str) -> None:
        if not self._foreign_depth:
            self.builder.end(name if self._depth == 1 else name.rpartition(" ")[2])
        elif self._foreign_depth == self._depth:
            self._foreign_depth = 0
        self._depth -= 1

    def text(self, text: str) -> None:
        if not self._foreign_depth:
            self.builder.data(text)
