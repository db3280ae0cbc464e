from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.config import MetricsSettings, MqttSettings, PolicySettings
from kvmd.config.fields import BrokerAddress, parse_broker_url, parse_listen, parse_size
from kvmd.config.settings import machine_name
from kvmwire.names import is_name


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1024", 1024), ("10GiB", 10 << 30), ("10 GiB", 10 << 30), ("5kB", 5000), ("5KiB", 5120), ("7B", 7)],
)
def test_sizes_are_bytes_or_have_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1.5GiB", "10Gib", "1_000", "10 G", "0x10", "1e3"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a whole number of bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker", BrokerAddress("broker", 1883, tls=False)),
        ("mqtts://broker/", BrokerAddress("broker", 8883, tls=True)),
        ("mqtts://10.0.0.1:1", BrokerAddress("10.0.0.1", 1, tls=True)),
        ("mqtt://[::1]:1884", BrokerAddress("::1", 1884, tls=False)),
    ],
)
def test_broker_urls_give_an_address(url: str, address: BrokerAddress) -> None:
    assert MqttSettings(url=url).address == address


@given(st.text())
def test_any_text_is_a_broker_url_or_a_value_error(text: str) -> None:
    try:
        address = parse_broker_url(text)
    except ValueError:
        return
    assert text.startswith(("mqtt://", "mqtts://"))
    assert 0 < address.port < 65536


def test_metrics_are_served_only_where_an_address_is_given() -> None:
    assert MetricsSettings().address is None
    assert MetricsSettings(listen="127.0.0.1:9105").address == ("127.0.0.1", 9105)
    assert MetricsSettings(listen="[::1]:9105").address == ("::1", 9105)
    with pytest.raises(ValueError, match="brackets"):
        parse_listen("[1.2]:9105")


def test_the_machine_has_a_name() -> None:
    assert is_name(machine_name())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        "fd00:ec2::254",
    ],
)
def test_dangerous_addresses_are_denied_by_default(address: str) -> None:
    denied = PolicySettings().denied_networks
    assert any(ipaddress.ip_address(address) in network for network in denied)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "93.184.216.34", "2001:db8::1", "fd00::1"])
def test_other_addresses_are_not_denied_by_default(address: str) -> None:
    denied = PolicySettings().denied_networks
    assert not any(ipaddress.ip_address(address) in network for network in denied)


def test_ports_of_mail_and_shells_are_denied_and_those_of_images_are_not() -> None:
    denied = set(PolicySettings().denied_ports)
    assert {22, 23, 25, 110, 143, 465, 587, 993, 995, 6667} <= denied
    assert not {80, 443, 2049, 3128, 8000, 8080, 8443} & denied
    assert len(denied) == len(PolicySettings().denied_ports)
