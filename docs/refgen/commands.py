"""The page about the commands, from their argument parsers.

``argparse`` writes its help differently in each version of Python and for each width of the terminal, so that the page
is made from the parsers' actions.
"""

# argparse has no public way to read a parser:
# ruff: noqa: SLF001 - argparse keeps its actions private
# pyright: reportPrivateUsage=false

from __future__ import annotations

import argparse
from collections.abc import Iterator

from controller.program import build_parser as kvmctl_parser
from docs.refgen.markdown import NOTICE, code, table
from kvmd.cli import build_parser as kvmd_parser


def commands_page() -> str:
    """Give ``commands.md``."""
    sections = [*_sections("kvmd", kvmd_parser()), *_sections("kvmctl", kvmctl_parser())]
    return (
        NOTICE + "# Commands\n\nThe exit codes are those of [codes.md](codes.md#exit-codes-of-the-commands). "
        "Options that a command\nshares with the one above it are described there.\n\n" + "\n".join(sections)
    )


def _sections(
    name: str,
    parser: argparse.ArgumentParser,
    *,
    level: int = 2,
    summary: str = "",
    above: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """Give the section of a command and those of its subcommands; ``above`` is what a parent has described already."""
    actions = [
        one
        for one in parser._actions
        if one.help != argparse.SUPPRESS and not (one.option_strings and f"{one.option_strings} {one.help}" in above)
    ]
    nested: list[argparse._SubParsersAction[argparse.ArgumentParser]] = [
        one for one in actions if isinstance(one, argparse._SubParsersAction)
    ]
    own = [one for one in actions if one not in nested and not isinstance(one, argparse._HelpAction)]
    text = parser.description or summary
    rows = [(_spelling(one), _explanation(one, parser)) for one in own]
    yield (
        f"{'#' * level} {name}\n\n"
        + (f"{_sentence(text)}\n\n" if text else "")
        + f"    {' '.join([name, *(_usage(one, parser) for one in own), *(['COMMAND ...'] if nested else [])])}\n"
        + ("\n" + table(("argument", "meaning"), rows) if rows else "")
    )
    known = above | {f"{one.option_strings} {one.help}" for one in own}
    for action in nested:
        helps = {one.dest: one.help or "" for one in action._choices_actions}
        for word, child in action.choices.items():
            if word in helps:  # an alias is not: it stands with its command
                yield from _sections(f"{name} {word}", child, level=min(level + 1, 4), summary=helps[word], above=known)


def _spelling(action: argparse.Action) -> str:
    values = _values(action)
    if not action.option_strings:
        return code(values)
    return ", ".join(code(f"{option} {values}".strip()) for option in action.option_strings)


def _usage(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    if not action.option_strings:
        return _values(action)
    text = f"{action.option_strings[-1]} {_values(action)}".strip()
    in_required_group = any(
        group.required and action in group._group_actions for group in parser._mutually_exclusive_groups
    )
    return text if action.required or in_required_group else f"[{text}]"


def _values(action: argparse.Action) -> str:
    """Spell the values that an action takes, as a usage line does."""
    if action.nargs == 0:
        return ""
    name = action.metavar
    if isinstance(name, tuple):
        return " ".join(name)
    if name is None:
        choices = "{" + ",".join(str(one) for one in action.choices) + "}" if action.choices else ""
        name = choices or (action.dest.upper() if action.option_strings else action.dest)
    match action.nargs:
        case None:
            return name
        case "?":
            return f"[{name}]"
        case "*":
            return f"[{name} ...]"
        case "+":
            return f"{name} [{name} ...]"
        case int(count):
            return " ".join([name] * count)
        case _:
            return f"{name} ..."


def _explanation(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    if isinstance(action, argparse._VersionAction):
        return "show the version and exit"  # argparse's own words are not the same in each version
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    groups = [group for group in parser._mutually_exclusive_groups if action in group._group_actions]
    others = [_spelling(one) for group in groups for one in group._group_actions if one is not action]
    return f"{text}; not with {', '.join(others)}" if others else text


def _sentence(text: str) -> str:
    words = " ".join(text.split())
    return words[0].upper() + words[1:] + ("" if words.endswith(".") else ".")
