"""What cloud-init reads from a NoCloud seed: the two documents, with an instance id in any case."""

from __future__ import annotations

import json
import re
from typing import cast

from kvmwire.events import CloudInit

LABEL = "cidata"
"""The name of the filesystem by which cloud-init knows a seed."""
_EMPTY_USER_DATA = "#cloud-config\n{}\n"


def user_data(given: CloudInit) -> str:
    """Give the user's document, or one that asks for nothing."""
    return given.user_data or _EMPTY_USER_DATA


def meta_data(given: CloudInit, *, name: str, instance_id: str) -> str:
    """Give the user's document with what is missing in it: the instance id, and the machine's name as its host name."""
    defaults = {"instance-id": instance_id, "local-hostname": name}
    if given.meta_data.lstrip().startswith("{"):
        return _with_defaults(given.meta_data, defaults)
    missing = [f"{key}: {value}\n" for key, value in defaults.items() if not _has(given.meta_data, key)]
    return "".join(missing) + given.meta_data


def _with_defaults(document: str, defaults: dict[str, str]) -> str:
    try:
        values = json.loads(document)
    except ValueError:
        return document  # cloud-init says what is wrong with it
    return json.dumps(defaults | cast("dict[str, object]", values))


def _has(document: str, key: str) -> bool:
    return re.search(rf"^[\"']?{key}[\"']?\s*:", document, re.MULTILINE) is not None
