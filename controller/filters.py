"""What a controller subscribes to. No filter of one list overlaps another: brokers would send everything twice."""

from __future__ import annotations

from kvmwire.topics import Topics


def hosts(topics: Topics) -> tuple[str, ...]:
    """Every host's own state."""
    return (f"{topics.prefix}/status/+/host",)


def wanted(topics: Topics, template: str = "+") -> tuple[str, ...]:
    """Every retained event; register events of one template where it is named."""
    prefix = topics.prefix
    return (f"{prefix}/register/{template}", f"{prefix}/deploy/all/+", f"{prefix}/deploy/host/+/+")


def outcome(topics: Topics, template: str = "+") -> tuple[str, ...]:
    """Name what hosts make of a template, or of all."""
    status = f"{topics.prefix}/status/+"
    return (f"{status}/probe/{template}", f"{status}/replica/+/{template}")


def progress(topics: Topics, template: str = "+") -> tuple[str, ...]:
    """Name the figures of running downloads."""
    return (f"{topics.prefix}/status/+/progress/+/{template}",)


def receipts(topics: Topics, event_id: str = "+") -> tuple[str, ...]:
    """Name the hosts' answers to one event, or to all."""
    return (f"{topics.prefix}/status/+/receipt/{event_id}",)


def everything(topics: Topics) -> tuple[str, ...]:
    """All that is retained."""
    return (*hosts(topics), *wanted(topics), *outcome(topics))
