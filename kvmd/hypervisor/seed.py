"""The foreign module ``pycdlib``: small ISO 9660 images, for cloud-init to read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib import import_module

from kvmd.core.seed import LABEL
from kvmd.errors import ConfigError

INSTALL = "Install it into kvmd's own Python: pip install 'kvmd[libvirt]'."


def load_pycdlib() -> None:
    """Raise ConfigError that says what to install, where it is missing."""
    try:
        import_module("pycdlib")
    except ImportError as exc:
        raise ConfigError(
            f"virtual machines need the Python package pycdlib, for their seeds: {exc}.", hint=INSTALL
        ) from exc


def seed_image(documents: Mapping[str, str]) -> bytes:
    """Give an ISO (Joliet and Rock Ridge) with these texts as files in its root."""
    load_pycdlib()
    from pycdlib import PyCdlib  # noqa: PLC0415 - an optional extra

    iso, image = PyCdlib(), io.BytesIO()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, text) in enumerate(documents.items()):
        content = text.encode()
        iso.add_fp(
            io.BytesIO(content),
            len(content),
            f"/FILE{number}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=0o100444,
        )
    iso.write_fp(image)
    iso.close()
    return image.getvalue()
