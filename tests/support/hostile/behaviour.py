"""The query of a URL as orders to the server: parsed, checked, and narrowed to one request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

_WINDOW = re.compile(r"(?P<value>.*)@(?P<first>\d+)(?P<open>-(?P<last>\d+)?)?", re.DOTALL)


class MisuseError(ValueError):
    """A test asked for a behaviour that does not exist."""


def _one_of(*words: str) -> Callable[[str], object]:
    def check(value: str) -> object:
        if value not in words:
            raise ValueError(f"not one of {', '.join(words)}")
        return value

    return check


def _hops(value: str) -> object:
    return value if value == "loop" else int(value)


def _span(value: str) -> object:
    return [int(part) for part in value.split(":", 1)]


def _headers(value: str) -> object:
    if not all(":" in line for line in value.split("|")):
        raise ValueError("a part is not NAME:VALUE")
    return value


_CHECKS: Mapping[str, Callable[[str], object]] = {
    **dict.fromkeys(
        ["status", "head", "connections", "redirect_status", "range_cap", "shift", "total", "length", "extra"], int
    ),
    **dict.fromkeys(["header_bytes", "header_count", "rate", "cut", "reset", "stall", "hold"], int),
    **dict.fromkeys(["delay", "header_trickle", "trickle", "cut_fraction"], float),
    **dict.fromkeys(["retry_after", "require", "redirect_to", "encoding", "mirror", "token", "media_type"], str),
    "header": _headers,
    "html": _one_of("1"),
    "drop": _one_of("fin", "rst"),
    "redirect": _hops,
    "validators": _one_of("both", "strong", "weak", "date", "none"),
    "entity": _one_of("retagged", "swapped", "swapped_silently"),
    "preconditions": _one_of("ignore"),
    "corrupt": _span,
    "ranges": _one_of("off"),
    "range_reply": _one_of("multipart"),
    "framing": _one_of("chunked", "close", "badchunk", "both"),
}


@dataclass(frozen=True)
class _Order:
    name: str
    value: str
    first: int
    last: int | None

    def holds(self, number: int) -> bool:
        return self.first <= number and (self.last is None or number <= self.last)


@dataclass(frozen=True)
class Behaviour:
    """What holds for one request. A parameter that was not given, or not for this request, is None."""

    orders: Mapping[str, str]

    def text(self, name: str) -> str | None:
        """Value as given."""
        return self.orders.get(name)

    def integer(self, name: str) -> int | None:
        """Value as a whole number."""
        value = self.orders.get(name)
        return None if value is None else int(value)

    def number(self, name: str) -> float | None:
        """Value as a number."""
        value = self.orders.get(name)
        return None if value is None else float(value)


def behaviour_of(query: str, number: int) -> Behaviour:
    """Return what the query orders for the request of this number; MisuseError for what nobody knows."""
    orders = [_order(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name[:2] != "X-"]
    return Behaviour(_first_of_each(order for order in orders if order.holds(number)))


def _first_of_each(orders: Iterable[_Order]) -> Mapping[str, str]:
    chosen: dict[str, str] = {}
    for order in orders:
        chosen.setdefault(order.name, order.value)
    return chosen


def _order(name: str, value: str) -> _Order:
    check = _CHECKS.get(name)
    if check is None:
        raise MisuseError(f"unknown parameter {name!r}")
    window = _WINDOW.fullmatch(value)
    first, last = 1, None
    if window is not None:
        value, first = window["value"], int(window["first"])
        last = first if window["open"] is None else int(window["last"]) if window["last"] else None
    try:
        check(value)
    except ValueError as exc:
        raise MisuseError(f"{name}={value!r}: {exc}") from exc
    return _Order(name, value, first, last)
