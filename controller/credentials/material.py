"""What a person gives for a credential: from files, from a terminal without echo, from standard input; least of all from argv.

Every process of a machine can read the command lines of the others, and shells keep them. Nothing that is read here appears in
a message.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import signal
import stat
import sys
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import SecretStr

from controller.errors import ControlError, UsageError
from kvmwire.certificates import CertificateFacts, check_anchors, check_pair, normal_pem
from kvmwire.codec import parse_json_object, validate
from kvmwire.codes import FailureCode, WireError
from kvmwire.headers import check_header_name, check_header_value
from kvmwire.origins import OriginPattern
from kvmwire.seal import Secret

MAX_SECRET = 64 * 1024
"""So much is sealed at most: with the CA certificates beside it, it fits into one event."""
_MAX_FILE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Given:
    """The options of one call, as they came."""

    headers: Sequence[SecretStr]
    header_file: Path | None
    basic: str | None
    password_file: Path | None
    is_bearer: bool
    token_file: Path | None
    ca: Path | None
    client_cert: Path | None
    key: Path | None


@dataclass(frozen=True, slots=True)
class Material:
    """What a credential is made of, checked; ``warnings`` are for the person."""

    secret: Secret | None
    anchors: str
    certificate: CertificateFacts | None
    authorities: CertificateFacts | None
    warnings: tuple[str, ...]

    @property
    def holds(self) -> tuple[str, ...]:
        """Name its parts, as ``CredentialStatus`` does."""
        secret = self.secret or Secret()
        parts = (("anchors", self.anchors), ("headers", secret.headers), ("certificate", secret.certificate))
        return tuple(name for name, part in parts if part)

    @property
    def fingerprint(self) -> str | None:
        """Give what a host will say."""
        return next((one.fingerprint for one in (self.certificate, self.authorities) if one is not None), None)

    @property
    def expires(self) -> datetime | None:
        """Give the earliest end of any certificate in it."""
        return min((one.not_after for one in (self.certificate, self.authorities) if one is not None), default=None)


def read_material(given: Given, *, now: datetime) -> Material:
    """Read, ask and check, by the rules of the hosts. Blocks. Raises ControlError; no message shows a secret."""
    if (given.client_cert is None) != (given.key is None):
        raise UsageError(
            "--client-cert and --key belong together; nothing was published.", hint="Give both, each a PEM file."
        )
    reader = _Reader()
    headers = _headers(given, reader)
    with _refusing(f"--ca {given.ca}: "):
        anchors = normal_pem(reader.file(given.ca)) if given.ca else ""
        authorities = check_anchors(anchors, now=now) if anchors else None
    with _refusing(f"--client-cert {given.client_cert}: "):
        certificate = normal_pem(reader.file(given.client_cert)) if given.client_cert else ""
    with _refusing(f"--client-cert {given.client_cert} --key {given.key}: "):
        key = SecretStr(reader.file(given.key, is_secret=True) if given.key else "")
        pair = check_pair(certificate, key.get_secret_value(), now=now) if certificate else None
    with _refusing():
        secret = _checked(headers, certificate, key) if headers or certificate else None
    if secret is None and not anchors:
        raise UsageError(
            "credential add: nothing was given that a host could show or believe; nothing was published.",
            hint="Add --header, --header-file, --basic, --bearer, --ca, or --client-cert with --key.",
        )
    endings = [one for one in (pair, authorities) if one is not None and one.ends_soon(now)]
    reader.warnings += [f"{one.subject} ends at {one.not_after.isoformat()}: renew it in time" for one in endings]
    return Material(secret, anchors, pair, authorities, tuple(reader.warnings))


@contextlib.contextmanager
def _refusing(where: str = "", *, hint: str | None = None) -> Generator[None, None, None]:
    """Say where what is refused stands, and nothing of what was read there; ``hint`` is for a better one than the code's own."""
    try:
        yield
    except WireError as exc:
        message = f"{where}{exc.message} Nothing was published."
        raise ControlError(message, hint=hint or exc.hint, code=exc.code) from None


def check_origins(texts: Iterable[str], material: Material, *, allow_http: bool) -> list[str]:
    """Refuse origins that the credential is not for, and give what a person should know of the others. Raises ControlError."""
    warnings = list[str]()
    for text in texts:
        pattern = _pattern(text)
        has_headers = "headers" in material.holds
        if pattern.scheme == "http" and not (allow_http and has_headers):
            raise _readable_on_the_way(text) if has_headers else _without_tls(text)
        if pattern.scheme not in {"http", "https"}:
            raise UsageError(
                f"--for {text[:200]!a}: credentials are for https, and with --allow-http for http; nothing was published.",
                hint="Write --for https://HOST or --for https://HOST:PORT.",
            )
        if pattern.host.startswith("*.") and "." not in pattern.host[2:] and material.secret is not None:
            warnings.append(
                f"every server below {pattern.host[1:]} is shown what is in it: name a narrower origin if you can"
            )
    return warnings


def _split(text: str) -> tuple[str, SecretStr]:
    """Read ``Name: value``, ``Name: @FILE``, ``Name: -`` or the name alone. Raises ControlError."""
    name, _, value = text.partition(":")
    with _refusing(hint="Leave this header out, or correct its name: such as Authorization, X-Token or PRIVATE-TOKEN."):
        return check_header_name(name.strip()), SecretStr(value.strip())


def _headers(given: Given, reader: _Reader) -> dict[str, SecretStr]:
    found = list[tuple[str, SecretStr]]()
    for name, value in [_split(one.get_secret_value()) for one in given.headers]:
        found.append((name, reader.header_value(name, value)))
    if given.header_file is not None:
        found += _read_headers(given.header_file, reader)
    if given.basic is not None:
        password = reader.one_line(given.password_file, f"password of {given.basic}: ", "--password-file")
        pair = base64.b64encode(f"{given.basic}:{password.get_secret_value()}".encode()).decode()
        found.append(("Authorization", SecretStr(f"Basic {pair}")))
    if given.is_bearer or given.token_file is not None:
        token = reader.one_line(given.token_file, "token: ", "--token-file")
        found.append(("Authorization", SecretStr(f"Bearer {token.get_secret_value()}")))
    for name, value in found:
        with _refusing(f"header {name}: ", hint="Correct the value: one line of printable characters."):
            check_header_value(value.get_secret_value())
        if not value.get_secret_value():
            raise UsageError(f"header {name}: its value is empty; nothing was published.", hint="Give it a value.")
    names = [name.lower() for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"header {twice}: it was given twice; nothing was published.", hint="Give it once.")
    return dict(found)


def _read_headers(path: Path, reader: _Reader) -> list[tuple[str, SecretStr]]:
    """Read whole headers. A line without a name may be the secret itself: it is refused by its number."""
    found = list[tuple[str, SecretStr]]()
    for number, line in enumerate(reader.file(path, is_secret=True).splitlines(), 1):
        if line.strip() and ":" not in line:
            raise UsageError(
                f"{path}, line {number}: expected NAME: VALUE; nothing was published.",
                hint="Write one whole header a line.",
            )
        if line.strip():
            found.append(_split(line))
    return found


def _checked(headers: dict[str, SecretStr], certificate: str, key: SecretStr) -> Secret:
    values = {"headers": headers, "certificate": certificate, "key": key}
    encoded = validate(Secret, values).encode()
    if len(encoded) > MAX_SECRET:
        raise WireError(
            FailureCode.CREDENTIAL_INVALID,
            f"the secret has {len(encoded)} bytes, at most {MAX_SECRET} can be handed out.",
            hint="Give fewer headers, or a shorter chain of certificates.",
        )
    parse_json_object(encoded)
    return Secret.decode(encoded)


def _pattern(text: str) -> OriginPattern:
    try:
        return OriginPattern.parse(text)
    except WireError as exc:
        raise ControlError(f"--for: {exc.message} Nothing was published.", hint=exc.hint, code=exc.code) from exc


def _readable_on_the_way(text: str) -> ControlError:
    return ControlError(
        f"--for {text}: over http everybody on the way can read what is in it; nothing was published.",
        hint="Use https; or add --allow-http if that network is to be trusted.",
        code=FailureCode.SECRET,
    )


def _without_tls(text: str) -> UsageError:
    return UsageError(
        f"--for {text}: certificates are of use with https alone; nothing was published.",
        hint="Write --for https://HOST[:PORT].",
    )


class _Reader:
    """Reads files, standard input and the terminal."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def header_value(self, name: str, given: SecretStr) -> SecretStr:
        """Give a header's value from where the option says it is."""
        match given.get_secret_value():
            case "":
                return self._asked(f"value of {name}: ", "--header-file FILE")
            case "-":
                return SecretStr(self._line("-"))
            case value if value.startswith("@") and len(value) > 1:
                return self.one_line(Path(value[1:]), "", "")
            case _:
                self.warnings.append(
                    f"the value of {name} stood on the command line, which every process here can read and your shell keeps: "
                    f"next time --header '{name}', which asks for it, or --header '{name}: @FILE'"
                )
                return given

    def one_line(self, path: Path | None, prompt: str, option: str) -> SecretStr:
        """Give the one line of a file, or what is typed."""
        if path is None:
            return self._asked(prompt, f"{option} FILE")
        if str(path) == "-":
            return SecretStr(self._line("-"))
        lines = self.file(path, is_secret=True).rstrip("\r\n").splitlines()
        if len(lines) != 1:
            raise UsageError(
                f"{path}: expected one line, got {len(lines)}; nothing was published.",
                hint="Put the secret alone into it.",
            )
        return SecretStr(lines[0].strip())

    def file(self, path: Path, *, is_secret: bool = False) -> str:
        """Read a text file. Raises UsageError, which names it and shows nothing of it."""
        if str(path) == "-":
            return sys.stdin.read(_MAX_FILE)
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_FILE + 1)
            mode = path.stat().st_mode
        except OSError as exc:
            raise UsageError(
                f"{path}: it cannot be read: {exc.strerror}; nothing was published.",
                hint="Correct the path or its rights.",
            ) from exc
        if len(content) > _MAX_FILE:
            raise UsageError(
                f"{path}: it has more than {_MAX_FILE} bytes; nothing was published.", hint="Name the right file."
            )
        if is_secret and stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IRGRP):
            self.warnings.append(f"others on this machine can read {path}: chmod 600 {path}")
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise UsageError(
                f"{path}: expected text; nothing was published.",
                hint="Certificates and keys have to be PEM: openssl x509 -inform der -in FILE -out FILE.pem",
            ) from None

    def _line(self, what: str) -> str:
        line = sys.stdin.readline(_MAX_FILE)
        if not line:
            raise UsageError(
                f"{what}: standard input is empty; nothing was published.", hint="Pipe the secret into it."
            )
        return line.strip()

    def _asked(self, prompt: str, instead: str) -> SecretStr:
        if not sys.stdin.isatty():
            raise UsageError(
                f"{prompt.rstrip(': ')}: there is no terminal to ask on; nothing was published.",
                hint=f"Give {instead}.",
            )
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # the event loop's would wait for the answer
        try:
            return SecretStr(getpass.getpass(prompt))
        except EOFError:
            raise UsageError("nothing was typed; nothing was published.", hint="Give it again.") from None
        finally:
            signal.signal(signal.SIGINT, handler)
