"""Pages about the contract: topics and failure codes."""

from __future__ import annotations

from docs.refgen.channels import CHANNELS, Channel, all_models
from docs.refgen.markdown import NOTICE, code, fields, table
from docs.refgen.schemas import definitions
from kvmwire.codec import MAX_EVENT_SIZE
from kvmwire.codes import CODES, Exit
from kvmwire.topics import DEFAULT_PREFIX

_EXITS = {
    Exit.DONE: "done",
    Exit.FAILED: "failed",
    Exit.USAGE: "wrong usage, or an event that is not of the agreed form",
    Exit.VERIFICATION: "the content is not what was promised",
    Exit.UNREACHABLE: "a source or the broker cannot be reached",
    Exit.POLICY: "the host's policy refuses it",
    Exit.INTERRUPTED: "interrupted",
}


def topics_page() -> str:
    """Give ``topics.md``."""
    return (
        NOTICE + "# Topics and payloads\n\n"
        f"The prefix `{DEFAULT_PREFIX}` is a setting. A name (template, deployment, host, pool, ...) is a letter or digit "
        "and up to 62 more\nletters, digits, dots, underscores and hyphens. The same as a document for tools: "
        "[asyncapi.json](asyncapi.json).\n\n"
        + table(("topic", "from", "retained", "QoS", "payload", "carries"), [_channel_row(one) for one in CHANNELS])
        + "\n## Events\n\n"
        f"An event is a JSON object of at most {MAX_EVENT_SIZE} bytes: either the data alone, or a CloudEvents 1.0 envelope "
        "around it.\nUnknown fields in the data are refused by name, unknown attributes of the envelope are ignored. What the "
        "topic names (`template`\nof a register event, `deployment` of a deploy event) may be left out of the data.\n\n"
        + "\n".join(_model_section(model.__name__) for model in all_models() if not _is_event(model.__name__))
        + "\n## Parts\n\n"
        + "\n".join(_model_section(name) for name in _parts())
    )


def codes_page() -> str:
    """Give ``codes.md``."""
    rows = [
        (
            code(name.value),
            facts.meaning,
            "tried again by itself" if facts.retryable else "final",
            str(facts.exit.value),
            facts.hint,
        )
        for name, facts in CODES.items()
    ]
    return (
        NOTICE + "# Failure codes\n\n"
        "Every failure carries a code, a message and a hint. A released code never changes its meaning. "
        "A final failure stays until a\nnew event or a `recheck`.\n\n"
        + table(("code", "meaning", "then", "exit", "what to do"), rows)
        + "\n## Exit codes of the commands\n\n"
        + table(("exit", "meaning"), [(str(one.value), _EXITS[one]) for one in Exit])
    )


def _channel_row(channel: Channel) -> tuple[str, ...]:
    return (
        code(channel.address),
        "controller" if channel.direction == "receive" else "host",
        "yes" if channel.retained else "no",
        str(channel.qos),
        " or ".join(f"[{model.__name__}](schemas/{model.__name__}.json)" for model in channel.models),
        channel.summary,
    )


def _is_event(name: str) -> bool:
    return name.endswith("Event")


def _parts() -> list[str]:
    payloads = {model.__name__ for model in all_models()}
    return [name for name, schema in definitions().items() if name not in payloads and "properties" in schema]


def _model_section(name: str) -> str:
    every = definitions()
    return f"### {name}\n\n{every[name]['description']}\n\n{fields(every[name], every)}".replace("``", "`")
