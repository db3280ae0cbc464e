"""The fleet's folder: keys as files of their own, everything else in ``fleet.json``, which is the one that counts.

A key file is written before the register names it, and each file is replaced whole: a crash leaves the old state or the
new one. The calls block, for milliseconds.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import tempfile
from collections.abc import Generator, Iterable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from controller.errors import UsageError
from controller.keys import files
from controller.keys.authority import Authority, certificate_pem, key_pem, new_tls_key
from controller.keys.register import VERSION, EnrolledHost, FleetRegister, Publisher
from kvmwire.trust import CONTROLLER_ROLES, Role, TrustedKey, TrustList, keyid_of

CONTROLLER, ROOT_KEY = "controller", "root"
REGISTER, CA, CRL = "fleet.json", "ca.pem", "crl.pem"


class FleetKeys:
    """The keys of one fleet, as they were when the folder was opened. Changes are made within ``changing`` alone."""

    def __init__(self, folder: Path, register: FleetRegister) -> None:
        self.folder = folder
        self.register = register

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Whether a fleet was made there. Raises UsageError where this user may not look."""
        try:
            (folder / REGISTER).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as exc:
            raise _unreadable(folder / REGISTER, exc.strerror or str(exc)) from exc
        return True

    @classmethod
    def version(cls, folder: Path) -> int:
        """Give what changes with the register: nanoseconds; 0 where there is none that can be seen."""
        try:
            return (folder / REGISTER).stat().st_mtime_ns
        except OSError:
            return 0

    @classmethod
    def open(cls, folder: Path) -> FleetKeys:
        """Read the register. Raises UsageError without a fleet, or with one that this version cannot read."""
        path = folder / REGISTER
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise UsageError(
                f"fleet {folder}: there is none.", hint="Make it: kvmctl keys init --broker-name NAME"
            ) from exc
        except OSError as exc:
            raise _unreadable(path, exc.strerror or str(exc)) from exc
        try:
            register = FleetRegister.model_validate_json(content)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise _unreadable(path, f"{where or 'it'}: {first['msg']}") from exc
        if register.version != VERSION:
            raise _unreadable(path, f"expected version {VERSION}, got {register.version}")
        return cls(folder, register)

    @classmethod
    def find(cls, folder: Path) -> FleetKeys | None:
        """Read the register; None where no fleet was made. Raises UsageError where it cannot be read."""
        return cls.open(folder) if cls.is_in(folder) else None

    @classmethod
    def create(cls, folder: Path, *, broker_names: Iterable[str], now: datetime) -> FleetKeys:
        """Make a fleet; the folder appears whole or not at all. Raises UsageError where there is one already."""
        try:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=files.FOLDER)
            with files.locked(folder.parent):
                for left in folder.parent.glob(f".{folder.name}.*"):
                    shutil.rmtree(left)  # of a process that was killed
                _make(folder, tuple(broker_names), now)
        except OSError as exc:
            raise UsageError(
                f"fleet {folder}: it cannot be made: {exc.strerror or exc}.",
                hint="Name a folder that can be written to, by fleet_dir in kvmctl.toml or KVMCTL_FLEET_DIR.",
            ) from exc
        return cls.open(folder)

    @classmethod
    @contextlib.contextmanager
    def changing(cls, folder: Path) -> Generator[FleetKeys, None, None]:
        """Give the fleet while no other process changes it. Raises UsageError."""
        cls.open(folder)
        try:
            with files.locked(folder / "lock"):
                keys = cls.open(folder)
                keys.finish()
                yield keys
        except OSError as exc:
            raise _unwritable(folder, exc) from exc

    def save(self, register: FleetRegister) -> None:
        """Write the new state; from then on it counts. Raises UsageError where it cannot be written."""
        try:
            files.write(self.folder / REGISTER, _encoded(register))
        except OSError as exc:
            raise _unwritable(self.folder, exc) from exc
        self.register = register
        self.finish()

    def finish(self) -> None:
        """Do what follows from the register: the list of revoked certificates, and no key file that nobody names."""
        path = self.folder / CRL
        if not path.exists() or _crl_number(path.read_bytes()) != self.register.crl_number:
            files.write(path, _crl(self.authority, self.register), mode=files.PUBLIC)
        for key in self.folder.glob("signing-*.key"):
            if key != self._signing_path(self.register.signing):
                key.unlink()
        for forgotten in self.folder.glob(".*"):
            forgotten.unlink()  # of a process that was killed: the lock is ours

    def hosts(self) -> tuple[EnrolledHost, ...]:
        """Give all hosts that were ever enrolled, those that were revoked too."""
        return self.register.hosts

    @property
    def revoked_hosts(self) -> frozenset[str]:
        """Name the hosts that were revoked."""
        return frozenset(host.name for host in self.hosts() if host.is_revoked)

    def publishers(self) -> tuple[Publisher, ...]:
        """Give all publishers, those that were revoked too."""
        return self.register.publishers

    @property
    def trust(self) -> TrustList:
        """What hosts are to believe."""
        return self.register.trust

    @cached_property
    def authority(self) -> Authority:
        """The CA."""
        key = load_tls_key(self.folder / "ca.key")
        return Authority(self.certificate(CA), key)

    @property
    def signing_key(self) -> ed25519.Ed25519PrivateKey:
        """Key that signs what this controller publishes."""
        if not self._signing_path(self.register.signing).exists():
            self.register = FleetKeys.open(self.folder).register  # it was replaced since the folder was opened
        return load_signing_key(self._signing_path(self.register.signing))

    @property
    def root_key(self) -> ed25519.Ed25519PrivateKey:
        """Key that signs the trust list, and nothing else."""
        return load_signing_key(self.folder / "root.key")

    @property
    def sealing_key(self) -> x25519.X25519PrivateKey:
        """The controller's own key: to it are sealed the secrets that it keeps."""
        return load_sealing_key(self.folder / "sealing.key")

    def certificate(self, name: str) -> x509.Certificate:
        """Read one of the certificates in the folder. Raises UsageError."""
        path = self.folder / name
        try:
            return x509.load_pem_x509_certificate(path.read_bytes())
        except OSError as exc:
            raise _unreadable(path, exc.strerror or str(exc)) from exc
        except ValueError as exc:
            raise _unreadable(path, "it holds no certificate") from exc

    def write_signing_key(self, key: ed25519.Ed25519PrivateKey) -> None:
        """Write a new signing key, which counts when the register that names it is saved."""
        path = self._signing_path(keyid_of(key.public_key().public_bytes_raw()))
        files.write(path, raw_key_pem(key))

    def renew_certificates(self, *, broker_names: tuple[str, ...], now: datetime) -> None:
        """Issue the broker's and the controller's certificates anew, for the keys that they have."""
        broker = load_tls_key(self.folder / "broker.key").public_key()
        controller = load_tls_key(self.folder / f"{CONTROLLER}.key").public_key()
        server, client = (
            self.authority.server(broker_names, broker, now),
            self.authority.client(CONTROLLER, controller, now),
        )
        files.write(self.folder / "broker.pem", certificate_pem(server), mode=files.PUBLIC)
        files.write(self.folder / f"{CONTROLLER}.pem", certificate_pem(client), mode=files.PUBLIC)
        self.save(self.register.model_copy(update={"broker_names": broker_names}))

    def _signing_path(self, keyid: str) -> Path:
        return self.folder / f"signing-{keyid}.key"


def load_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a key for TLS, or a CA's. Raises UsageError, which shows nothing of it."""
    key = _load(path)
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else _refuse_kind(path, "ECDSA", key)


def load_signing_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """Read a key that signs events. Raises UsageError, which shows nothing of it."""
    key = _load(path)
    return key if isinstance(key, ed25519.Ed25519PrivateKey) else _refuse_kind(path, "Ed25519", key)


def load_sealing_key(path: Path) -> x25519.X25519PrivateKey:
    """Read a key to which secrets are sealed. Raises UsageError, which shows nothing of it."""
    key = _load(path)
    return key if isinstance(key, x25519.X25519PrivateKey) else _refuse_kind(path, "X25519", key)


def raw_key_pem(key: ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey) -> bytes:
    """Write a private key that signs, or opens what is sealed, as the functions above read it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_text(key: x25519.X25519PublicKey) -> str:
    """Write a sealing key as the register has it."""
    return base64.b64encode(key.public_bytes_raw()).decode()


def controller_key(key: ed25519.Ed25519PrivateKey) -> TrustedKey:
    """Give the entry by which hosts believe a controller's key."""
    public = key.public_key()
    return TrustedKey.of(f"{CONTROLLER}-{keyid_of(public.public_bytes_raw())[:8]}", public, CONTROLLER_ROLES)


def _fill(folder: Path, broker_names: tuple[str, ...], now: datetime) -> None:
    authority = Authority.new(now)
    signing, root = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    broker, controller = new_tls_key(), new_tls_key()
    entries = (TrustedKey.of(ROOT_KEY, root.public_key(), [Role.TRUST]), controller_key(signing))
    register = FleetRegister(
        created=now,
        broker_names=broker_names,
        signing=entries[1].keyid,
        root=entries[0].keyid,
        trust=TrustList(generation=int(now.timestamp() * 1000), keys=entries),
    )
    private = {
        "ca.key": key_pem(authority.key),
        "root.key": raw_key_pem(root),
        f"signing-{register.signing}.key": raw_key_pem(signing),
        "sealing.key": raw_key_pem(x25519.X25519PrivateKey.generate()),
        "broker.key": key_pem(broker),
        f"{CONTROLLER}.key": key_pem(controller),
        REGISTER: _encoded(register),
    }
    public = {
        CA: certificate_pem(authority.certificate),
        "broker.pem": certificate_pem(authority.server(broker_names, broker.public_key(), now)),
        f"{CONTROLLER}.pem": certificate_pem(authority.client(CONTROLLER, controller.public_key(), now)),
        CRL: _crl(authority, register),
    }
    for mode, contents in ((files.PRIVATE, private), (files.PUBLIC, public)):
        for name, content in contents.items():
            files.write(folder / name, content, mode=mode)


def _make(folder: Path, broker_names: tuple[str, ...], now: datetime) -> None:
    """Fill a folder beside its place, where at most an empty one may be, and move it there."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        files.give_to_owner_of(folder.parent, temporary)
        _fill(temporary, broker_names, now)
        files.sync_folder(temporary)
        temporary.rename(folder)
    except OSError as exc:
        if not folder.exists():
            raise
        raise UsageError(
            f"fleet {folder}: there is one already, or something else; nothing was changed.",
            hint="See it with: kvmctl keys list. New keys for it: kvmctl keys rotate. Another one: KVMCTL_FLEET_DIR.",
        ) from exc
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files.sync_folder(folder.parent)


def _encoded(register: FleetRegister) -> bytes:
    return register.model_dump_json(indent=1, exclude_none=True).encode() + b"\n"


def _crl(authority: Authority, register: FleetRegister) -> bytes:
    now = (
        register.created
        if not register.revoked_certificates()
        else max(one.since for one in register.revoked_certificates())
    )
    crl = authority.revocation_list(register.revoked_certificates(), number=register.crl_number, now=now)
    return crl.public_bytes(Encoding.PEM)


def _crl_number(pem: bytes) -> int:
    """Give the number of a list; 0 for what is none."""
    try:
        return x509.load_pem_x509_crl(pem).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (ValueError, x509.ExtensionNotFound):
        return 0


def _load(path: Path) -> PrivateKeyTypes:
    """Read a private key: PKCS8 in PEM, without a pass phrase."""
    try:
        return load_pem_private_key(path.read_bytes(), None)
    except OSError as exc:
        raise _unreadable(path, exc.strerror or str(exc)) from exc
    except (ValueError, TypeError) as exc:
        why = "it holds no private key without a pass phrase, in PEM"
        raise _unreadable(
            path, why, hint="Name the right file, or restore it from the copy that was made of it."
        ) from exc


def _refuse_kind(path: Path, expected: str, key: PrivateKeyTypes) -> NoReturn:
    why = f"expected a key for {expected}, got one of another kind ({type(key).__name__})"
    hint = f"Name the file of the {expected} key, or restore it from the copy that was made of it."
    raise _unreadable(path, why, hint=hint)


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"fleet {folder}: {error.filename or folder} cannot be written: {error.strerror or error}.",
        hint="Run this as the owner of the folder, with free space on its disk.",
    )


def _unreadable(path: Path, why: str, *, hint: str = "Run this as the owner of the file, or restore it.") -> UsageError:
    return UsageError(f"{path}: it cannot be used: {why}.", hint=hint)
