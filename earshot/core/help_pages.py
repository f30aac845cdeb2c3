"""The pages of --help and --help-all, and the flags behind them as data."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import sys
import textwrap
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from earshot.core.settings import to_flag

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}
DEFAULT = re.compile(r" ?\(default: ([^()]*)\)")
WIDEST = 110  # columns


@dataclass(frozen=True)
class Flag:
    """A flag as the help shows it.

    `group` is the title of the flag's group, `about` the group's docstring. `names` are its spellings, the
    long one first. `metavar` says what value it takes: "" for none, `INT`, `TEXT`, `{mean,auto}`, `TEXT ...`.
    `default` is "" where there is none. `common`: is it on the short page?
    """

    group: str
    about: str
    names: tuple[str, ...]
    metavar: str
    default: str
    help: str
    common: bool


def wants_help(argv: list[str]) -> bool:
    """Is --help or --help-all among the arguments?"""
    return not {*HELP, HELP_ALL}.isdisjoint(argv)


def list_flags(groups: dict[str, Any]) -> list[Flag]:
    """All flags of a script, in the order of its help.

    Args:
        groups: title -> dataclass instance holding the defaults, as `cli.parse` takes them and each script's
            `list_groups()` gives them. A class variable `COMMON` names the fields of the short page; without
            it they all are on it.
    """
    from docstring_parser import parse_from_object  # tyro needs it, too

    flags = []
    for title, settings in groups.items():
        kind = type(settings)
        texts = {
            one.arg_name: one.description or ""
            for base in reversed(kind.__mro__[:-1])
            for one in parse_from_object(base).params
        }
        hints = get_type_hints(kind, include_extras=True)
        common = getattr(kind, "COMMON", None)
        for field in dataclasses.fields(settings):
            value, name = getattr(settings, field.name), to_flag(field.name)
            names = (name, name.replace("--", "--no-")) if value is True else (name,)
            for note in getattr(hints[field.name], "__metadata__", ()):
                names += tuple(getattr(note, "aliases", None) or ())  # -m, as tyro reads it
            text = " ".join(texts.get(field.name, "").split())
            own = DEFAULT.search(text)
            default = own[1] if own and value == field.default else _format_default(value)
            flags.append(
                Flag(
                    title,
                    " ".join((kind.__doc__ or "").split()),
                    names,
                    _format_metavar(hints[field.name]),
                    default,
                    DEFAULT.sub("", text),
                    common is None or field.name in common,
                )
            )
    return flags


def _format_default(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _format_metavar(hint: Any) -> str:
    while get_origin(hint) in (Union, types.UnionType) or hasattr(hint, "__metadata__"):
        hint = next(one for one in get_args(hint) if one is not types.NoneType)
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if get_origin(hint) is tuple:
        return " ".join("..." if one is Ellipsis else _format_metavar(one) for one in inner)
    return METAVARS.get(hint, "")


class _Page(argparse.RawDescriptionHelpFormatter):
    """argparse's page, which does not break a flag at its hyphens."""

    def __init__(self, prog: str):
        super().__init__(
            prog, max_help_position=26, width=min(shutil.get_terminal_size().columns, WIDEST) - 2
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def format_page(
    groups: dict[str, Any], description: str, everything: bool, positional: str | None = None
) -> str:
    """The help of the running script.

    Args:
        groups: as of `list_flags`.
        everything: all flags, not the common ones alone.
        positional: the name of a list of loose arguments, if there is one.
    """
    flags = list_flags(groups)
    hidden = sum(not flag.common for flag in flags)
    parser = argparse.ArgumentParser(
        usage=f"{name_command()} [flags]{f' [{positional} ...]' if positional else ''}",
        description=description,
        epilog=f"{HELP_ALL} shows {hidden} more flags." if hidden and not everything else None,
        add_help=False,
        formatter_class=_Page,
    )
    sections: dict[str, Any] = {}
    for flag in flags:
        if everything or flag.common:
            if flag.group not in sections:
                sections[flag.group] = parser.add_argument_group(flag.group, flag.about)
            value: dict[str, Any] = {"metavar": flag.metavar} if flag.metavar else {"action": "store_true"}
            text = f"{flag.help} (default: {flag.default})" if flag.default else flag.help
            sections[flag.group].add_argument(*flag.names, help=text.replace("%", "%%"), **value)
    others = parser.add_argument_group("help")
    others.add_argument(*HELP, action="store_true", help="show this page")
    if hidden:
        others.add_argument(HELP_ALL, action="store_true", help="show all flags")
    return parser.format_help()


def name_command() -> str:
    """How the running script is called: `python train.py`, or `python -m earshot.report`."""
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    if module and module.name.startswith(("earshot.", "models")):
        return f"python -m {module.name.removesuffix('.__main__')}"
    return f"python {os.path.basename(sys.argv[0])}"
