"""The command line: dataclasses as flags, recipes as their defaults, errors in one line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import gc
import io
import os
import re
import signal
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from earshot.core import help_pages, process
from earshot.core.config import check
from earshot.core.deadline import SIGNALS, build_continue_command
from earshot.core.device import is_out_of_memory
from earshot.core.errors import OF_THE_MACHINE, TemporaryError, UserError, to_temporary
from earshot.core.settings import CLOSE, REMOVED, find_former_names, to_flag

TEMPORARY = 75  # sysexits.h: EX_TEMPFAIL
COMPANIONS = ("torchaudio", "torchvision")  # each loads beside few releases of torch


def run(main: Callable[[list[str]], None]) -> None:
    """Call a script's main with the arguments and exit with 0, 2 (user error), 75 (temporary failure), 130 or
    143 (stopped); errors are one line."""
    process.prepare()
    signal.signal(signal.SIGTERM, SIGNALS.handle)
    signal.signal(signal.SIGINT, SIGNALS.handle)
    if hasattr(sys.stdout, "reconfigure"):
        # lines appear in a log as soon as they are printed
        sys.stdout.reconfigure(line_buffering=True)
    # Python gets its own descriptor: decoders write to the shared one, which `decode.silence_mpg123` closes
    # at times.
    sys.stderr = os.fdopen(
        os.dup(2), "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors, buffering=1
    )
    try:
        main(sys.argv[1:])
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os._exit(0)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        sys.exit(_print_failure(error))
    except (KeyboardInterrupt, SystemExit) as stopped:
        code = 130 if isinstance(stopped, KeyboardInterrupt) else stopped.code
        if code in (130, 143):
            print(
                f"stopped: what was finished is kept; continue with: {build_continue_command()}",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        # prefetching threads may still be decoding: don't wait for them after a stop
        os._exit(code) if code in (130, 143) else sys.exit(code)
    finally:
        # else the interpreter's last garbage collection goes through all of torch: half a second
        gc.freeze()


def _print_failure(error: OSError | MemoryError | RuntimeError | ImportError) -> int:
    """Print a failure in one line and return the exit code; a bug in Earshot is raised again."""
    unfit = _find_unfit_package(error)
    if unfit:
        text = f"{unfit} does not load beside the torch that is installed: pip install -r requirements.txt"
    elif isinstance(error, MemoryError) or isinstance(error, RuntimeError) and is_out_of_memory(error):
        text = "not enough memory (end other programs, or use a smaller --batch-size or fewer --workers)"
    elif isinstance(error, TemporaryError):
        text = str(error)
    elif isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        text = str(to_temporary(error.filename, error))
    elif isinstance(error, OSError) and (error.filename or error.errno):
        print(
            f"error: {error.filename or 'a file'}: {error.strerror or error}; what was finished is kept, and "
            "the same command continues once that is fixed",
            file=sys.stderr,
        )
        return 2
    else:
        raise error
    print(
        f"error: {' '.join(text.split())} (temporary: nothing is lost, the same command continues)",
        file=sys.stderr,
    )
    # threads may still be decoding from a drive that hangs
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(TEMPORARY)


def _find_unfit_package(error: BaseException | None) -> str | None:
    """The package of another release than torch whose import has failed; transformers may have begun it."""
    while error is not None:
        for frame in traceback.extract_tb(error.__traceback__):
            package = os.path.basename(os.path.dirname(frame.filename))
            if package in COMPANIONS and frame.name == "<module>" and frame.filename.endswith("__init__.py"):
                return package
        error = error.__cause__ or error.__context__
    return None


def parse_early(
    argv: list[str],
    single: Sequence[str] = (),
    repeated: Sequence[str] = (),
    bare: Mapping[str, str] = types.MappingProxyType({}),
) -> tuple[dict[str, str | None], list[str]]:
    """The values of flags that decide which other flags exist, and all arguments as `parse` takes them.

    Args:
        argv: the arguments.
        single: flags whose values are returned, None for an absent one.
        repeated: flags that may be repeated: their values are collected behind one.
        bare: flags that may stand without a value -> the value that they then get.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in (*single, *bare):
        parser.add_argument(f"--{flag}", dest=flag, nargs="*")
    for flag in repeated:
        parser.add_argument(f"--{flag}", dest=flag, nargs="*", action="extend")
    known, arguments = parser.parse_known_args(argv)
    values = vars(known)
    for flag, given in values.items():
        arguments += [f"--{flag}", *(given or ([bare[flag]] if flag in bare else []))]
    return {flag: next(iter(values.get(flag, [])), None) for flag in single}, arguments


def parse(
    groups: dict[str, Any],
    argv: list[str],
    description: str,
    positional: str | None = None,
    free: str | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Fill groups of settings from flags; --help prints the page and exits.

    Args:
        groups: title -> dataclass instance holding the defaults; every field is a flag.
        argv: the arguments.
        description: the first lines of --help.
        positional: the name of a list of arguments without flags, if there is one.
        free: a prefix such as "head": flags `--head.KEY VALUE` are collected instead of refused.
    Returns:
        title -> filled instance (and the arguments under `positional`'s name), and the free flags.
    Raises:
        UserError: in one line, for an unknown flag or a value of the wrong type.
    """
    if help_pages.wants_help(argv):
        print(help_pages.format_page(groups, description, help_pages.HELP_ALL in argv, positional), end="")
        sys.exit(0)
    import tyro

    argv = _replace_former_flags(groups, argv)
    fields = [
        (title, tyro.conf.OmitArgPrefixes[type(value)], dataclasses.field(default=value))
        for title, value in groups.items()
    ]
    if positional:
        kind = tyro.conf.Positional[tuple[str, ...]]
        fields.append((positional, kind, dataclasses.field(default=())))
    flags = dataclasses.make_dataclass("Flags", fields)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed, unknown = tyro.cli(flags, args=argv, description=description, return_unknown_args=True)
    except SystemExit as leaving:
        if leaving.code:
            raise UserError(_extract_message(printed.getvalue(), groups)) from None
        raise
    known = [to_flag(f.name) for value in groups.values() for f in dataclasses.fields(value)]
    collected: dict[str, str] = {}
    rest = [part for argument in unknown for part in _split_equals(argument)]
    while rest:
        flag = rest.pop(0)
        if free and flag.startswith(f"--{free}.") and rest:
            collected[flag.removeprefix(f"--{free}.").replace("-", "_")] = rest.pop(0)
            continue
        if flag.removeprefix("--") in REMOVED:
            raise UserError(f"{flag} {REMOVED[flag.removeprefix('--')]}")
        near = difflib.get_close_matches(flag, known, 1, CLOSE) if flag.startswith("-") else []
        page = help_pages.HELP_ALL if any(hasattr(one, "COMMON") for one in groups.values()) else "--help"
        hint = f"did you mean {near[0]}?" if near else f"see {help_pages.name_command()} {page}"
        kind = "unknown flag" if flag.startswith("-") else "unexpected argument"
        raise UserError(f"{kind} {flag}: {hint}")
    filled = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(parsed)}
    for title in groups:
        check(filled[title])
    return filled, collected


def _replace_former_flags(groups: dict[str, Any], argv: list[str]) -> list[str]:
    """Replace former names of flags by the new ones, with a warning for each."""
    renamed: dict[str, str] = {}
    for settings in groups.values():
        renamed |= {to_flag(old): to_flag(new) for old, new in find_former_names(settings).items()}
    arguments = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if flag in renamed:
            print(f"warning: {flag} is now {renamed[flag]}; the next release drops the old name", flush=True)
        arguments.append(renamed.get(flag, flag) + equals + value)
    return arguments


def _split_equals(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--") and "=" in argument else [argument]


def _extract_message(boxed: str, groups: dict[str, Any]) -> str:
    """The first paragraph of tyro's boxed message, which says what is wrong."""
    lines = []
    for line in boxed.splitlines():
        text = re.sub(r"[\u2500-\u257f]+", " ", line).strip()
        if line.startswith("│") and not text:  # the rule below the message
            break
        if line.startswith("│"):
            lines.append(text)
    text = " ".join(" ".join(lines or [boxed]).split())
    wrong = re.fullmatch(
        r"Error parsing (--\S+): (invalid literal for int|could not convert string to float).*?('.*')", text
    )
    if wrong is None:
        several = re.fullmatch(r"Error parsing (--\S+): Could not find valid parse .*?: \[(.*)\]", text)
        hints = {to_flag(k): v for one in groups.values() for k, v in get_type_hints(type(one)).items()}
        if several and hints.get(several[1]) == tuple[int, ...]:
            given = " ".join(re.findall(r"'(.*?)'", several[2]))
            return f"{several[1]} {given}: must be whole numbers, for example {several[1]} 4 8"
        return text
    return f"{wrong[1]} {wrong[3]}: must be a {'whole ' if 'int' in wrong[2] else ''}number"
