from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.config.settings import DENIED_NETWORKS
from kvmd.core.addresses import AddressPolicy

DEFAULT = AddressPolicy((), DENIED_NETWORKS)
DENIED_V4 = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "169.254.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "255.255.255.255",
]
WRAPPINGS = ["mapped", "6to4", "nat64", "local nat64", "teredo server", "teredo client"]

v4_addresses = st.ip_addresses(v=4)


def _wrapped(inner: IPv4Address, how: str) -> str:
    number = int(inner)
    outer = {
        "mapped": (0xFFFF << 32) | number,
        "6to4": (0x2002 << 112) | (number << 80) | 1,
        "nat64": (0x0064FF9B << 96) | number,
        "local nat64": (0x0064FF9B0001 << 80) | number,
        "teredo server": (0x20010000 << 96) | (number << 64) | (0xFFFFFFFF ^ int(IPv4Address("192.0.2.1"))),
        "teredo client": (0x20010000 << 96) | (int(IPv4Address("192.0.2.1")) << 64) | (0xFFFFFFFF ^ number),
    }[how]
    return str(IPv6Address(outer))


@pytest.mark.parametrize("text", DENIED_V4)
def test_by_default_no_address_of_the_host_itself_or_of_everybody_is_allowed(text: str) -> None:
    assert not DEFAULT.allows(text)


@pytest.mark.parametrize("how", WRAPPINGS)
@pytest.mark.parametrize("text", DENIED_V4)
def test_no_wrapping_hides_a_denied_address(text: str, how: str) -> None:
    assert not DEFAULT.allows(_wrapped(IPv4Address(text), how))


@pytest.mark.parametrize("text", ["::1", "::", "fe80::1", "fe80::1%eth0", "febf::1", "ff02::1", "fd00:ec2::254"])
def test_by_default_no_such_ipv6_address_is_allowed(text: str) -> None:
    assert not DEFAULT.allows(text)


@pytest.mark.parametrize("text", ["192.0.2.7", "10.0.0.1", "8.8.8.8", "2001:db8::1", "fd12::1", "2606:4700::1111"])
def test_ordinary_addresses_are_allowed_private_ones_too(text: str) -> None:
    assert DEFAULT.allows(text)


@pytest.mark.parametrize("how", WRAPPINGS)
def test_an_ordinary_address_may_be_wrapped(how: str) -> None:
    assert DEFAULT.allows(_wrapped(IPv4Address("198.51.100.7"), how))


@pytest.mark.parametrize(
    "text", ["", "localhost", "127.1", "0x7f000001", "2130706433", "1.2.3.4.5", "[::1]", "1.2.3.4:80"]
)
def test_what_is_no_address_is_not_connected_to(text: str) -> None:
    assert not AddressPolicy((), ()).allows(text)


@given(v4_addresses, st.sampled_from(WRAPPINGS))
def test_a_denied_network_is_denied_in_every_wrapping(address: IPv4Address, how: str) -> None:
    policy = AddressPolicy((), (ip_network(address),))
    assert not policy.allows(str(address))
    assert not policy.allows(_wrapped(address, how))


@given(v4_addresses, st.integers(0, 32))
def test_allowed_wins_over_denied(address: IPv4Address, prefix: int) -> None:
    allowed = IPv4Network((address, prefix), strict=False)
    policy = AddressPolicy((allowed,), (ip_network("0.0.0.0/0"), ip_network("::/0")))
    assert policy.allows(str(address))
    assert policy.allows(str(allowed[0]))
    assert policy.allows(str(allowed[-1]))


@given(v4_addresses, st.sampled_from(WRAPPINGS))
def test_allowing_everything_in_ipv6_opens_no_way_to_a_denied_ipv4_address(address: IPv4Address, how: str) -> None:
    policy = AddressPolicy((ip_network("::/0"),), (ip_network(address),))
    assert not policy.allows(_wrapped(address, how))


@given(v4_addresses)
def test_an_allowed_ipv4_address_may_come_mapped(address: IPv4Address) -> None:
    policy = AddressPolicy((ip_network(address),), (ip_network("0.0.0.0/0"),))
    assert policy.allows(_wrapped(address, "mapped"))


@given(st.ip_addresses())
def test_a_policy_without_networks_allows_every_address(address: IPv4Address | IPv6Address) -> None:
    assert AddressPolicy((), ()).allows(str(address))
