"""Names of templates, hosts, pools, deployments, credentials and machines; ids of events."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
EVENT_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"

Name = Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$", max_length=63)]
EventId = Annotated[str, StringConstraints(pattern=f"^{EVENT_ID_PATTERN}$", max_length=128)]


def is_name(text: str) -> bool:
    """Whether the text may be a name: then it is one safe topic level and one safe file name."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def is_event_id(text: str) -> bool:
    """Whether the text may be an event's id, which becomes the last level of its receipt's topic."""
    return re.fullmatch(EVENT_ID_PATTERN, text) is not None
