from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from kvmd.config import DirectoryPool, InspectorSettings, MqttSettings, Settings
from kvmd.config.checking import Finding, check
from kvmd.errors import ConfigError
from tests.support.tls import Authority

NOW = datetime.now(UTC)


def _settings(tmp_path: Path, mqtt: MqttSettings | None = None) -> Settings:
    pool = tmp_path / "pool"
    pool.mkdir(exist_ok=True)
    return Settings(
        state_dir=tmp_path / "state", pools={"default": DirectoryPool(path=pool)}, mqtt=mqtt or MqttSettings()
    )


def _tls(authority: Authority, *, cert: Path | None = None, key: Path | None = None) -> MqttSettings:
    client = authority.client
    return MqttSettings(
        url="mqtts://localhost:8883", ca=authority.ca_file, cert=cert or client.certificate, key=key or client.key
    )


def _one(findings: list[Finding], key: str, severity: str) -> str:
    assert [(finding.key, finding.severity) for finding in findings] == [(key, severity)]
    assert findings[0].hint
    return findings[0].message


def test_good_settings_have_no_findings(tmp_path: Path, authority: Authority) -> None:
    assert check(_settings(tmp_path, _tls(authority)), now=NOW) == []


def test_a_missing_pool_folder_is_an_error(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    (tmp_path / "pool").rmdir()
    assert "is not there" in _one(check(settings, now=NOW), "pools.default.path", "error")


def test_a_state_dir_inside_of_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert "cannot be written to" in _one(check(_settings(tmp_path), now=NOW), "state_dir", "error")


def test_a_key_of_another_certificate_is_an_error(tmp_path: Path, authority: Authority) -> None:
    findings = check(_settings(tmp_path, _tls(authority, key=authority.server.key)), now=NOW)
    assert "is not the key of the first certificate" in _one(findings, "mqtt.key", "error")


def test_a_key_that_everybody_can_read_is_doubtful(tmp_path: Path, authority: Authority) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(authority.client.key.read_bytes())
    key.chmod(0o644)
    assert "every user" in _one(check(_settings(tmp_path, _tls(authority, key=key)), now=NOW), "mqtt.key", "warning")


@pytest.mark.parametrize("text", ["", "rubbish", "-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n"])
def test_rubbish_in_pem_files_is_an_error(tmp_path: Path, authority: Authority, text: str) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text(text)
    findings = check(_settings(tmp_path, _tls(authority, cert=rubbish)), now=NOW)
    assert "no PEM certificate" in _one(findings, "mqtt.cert", "error")
    findings = check(_settings(tmp_path, _tls(authority, key=rubbish)), now=NOW)
    assert "no PEM private key" in _one(findings, "mqtt.key", "error")


def test_a_missing_pem_file_is_an_error_that_names_it(tmp_path: Path, authority: Authority) -> None:
    findings = check(_settings(tmp_path, _tls(authority, cert=tmp_path / "none.pem")), now=NOW)
    assert f"{tmp_path}/none.pem cannot be read: No such file" in _one(findings, "mqtt.cert", "error")


@pytest.mark.parametrize(
    ("days", "severity", "told"), [(-1, "error", "expired on"), (10, "warning", "expires on"), (60, "", "")]
)
def test_the_end_of_a_certificate_is_looked_at(tmp_path: Path, days: int, severity: str, told: str) -> None:
    issued = trustme.CA().issue_cert(
        "localhost", not_after=NOW + timedelta(days=days), not_before=NOW - timedelta(days=9)
    )
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    findings = check(_settings(tmp_path, MqttSettings(url="mqtts://localhost", cert=cert, key=key)), now=NOW)
    if not severity:
        assert findings == []
        return
    assert told in _one(findings, "mqtt.cert", severity)


def test_a_certificate_of_the_future_is_an_error(tmp_path: Path, authority: Authority) -> None:
    settings = _settings(tmp_path, MqttSettings(url="mqtts://localhost", ca=authority.ca_file))
    findings = check(settings, now=datetime(1990, 1, 1, tzinfo=UTC))
    assert "is not valid before" in _one(findings, "mqtt.ca", "error")


def test_the_password_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"p\xc3\xa4ss word \r\nsecond\n")
    password = MqttSettings(username="joe", password_file=file).read_password()
    assert password is not None
    assert password.get_secret_value() == "p\u00e4ss word "
    assert "ss word" not in repr(password)


def test_without_a_file_there_is_no_password() -> None:
    assert MqttSettings().read_password() is None


@pytest.mark.parametrize(("content", "told"), [(b"", "is empty"), (b"\nx", "is empty"), (b"\xff", "is not UTF-8")])
def test_a_password_that_cannot_be_used_is_an_error_that_names_the_file(
    tmp_path: Path, content: bytes, told: str
) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    mqtt = MqttSettings(username="joe", password_file=file)
    with pytest.raises(ConfigError) as caught:
        mqtt.read_password()
    assert str(file) in caught.value.message
    assert told in caught.value.message
    assert told in _one(check(_settings(tmp_path, mqtt), now=NOW), "mqtt.password_file", "error")


def test_a_missing_password_file_is_an_error(tmp_path: Path) -> None:
    mqtt = MqttSettings(username="joe", password_file=tmp_path / "none")
    with pytest.raises(ConfigError, match="none cannot be read: No such file"):
        mqtt.read_password()


def test_a_password_over_the_network_without_tls_is_doubtful(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("secret\n")
    file.chmod(0o600)
    mqtt = MqttSettings(url="mqtt://broker.example", username="joe", password_file=file)
    assert "without TLS" in _one(check(_settings(tmp_path, mqtt), now=NOW), "mqtt.url", "warning")


def test_an_inspector_that_cannot_be_used_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings(tmp_path)
    away = settings.model_copy(update={"inspector": InspectorSettings(socket=tmp_path / "none")})
    assert "is no socket" in _one(check(away, now=NOW), "inspector.socket", "error")
    monkeypatch.setenv("PATH", str(tmp_path))
    needed = settings.model_copy(update={"inspector": InspectorSettings(required=True)})
    assert "qemu-img is not installed" in _one(check(needed, now=NOW), "inspector.required", "error")
    assert check(settings, now=NOW) == []


def test_a_pool_of_raw_volumes_needs_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, pool = _settings(tmp_path), DirectoryPool(path=tmp_path / "pool", format="raw")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check(settings, now=NOW) == []
    raw = settings.model_copy(update={"pools": {"fast": pool}})
    assert "is not installed" in _one(check(raw, now=NOW), "pools.fast.format", "error")
