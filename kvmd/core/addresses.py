"""Which addresses may be connected to. Asked about the address that is really dialled, never about a name."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """``allowed`` networks win over ``denied`` ones; what is in neither is allowed."""

    allowed: Sequence[Network]
    denied: Sequence[Network]

    def allows(self, text: str) -> bool:
        """Whether this address, and every IPv4 address wrapped inside of it, may be connected to."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        return all(self._allows_one(one) for one in (address, *_unwrapped(address)))

    def _allows_one(self, address: Address) -> bool:
        if any(address in network for network in self.allowed):
            return True
        return not any(address in network for network in self.denied)


def _unwrapped(address: Address) -> tuple[Address, ...]:
    """Give the IPv4 addresses that packets to this one may end at: IPv4-mapped, 6to4, Teredo, NAT64 (RFC 6052, RFC 8215)."""
    if isinstance(address, IPv4Address):
        return ()
    teredo = address.teredo
    inner = [address.ipv4_mapped, address.sixtofour, *(teredo or ())]
    if any(address in prefix for prefix in _NAT64):
        inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return tuple(one for one in inner if one is not None)
