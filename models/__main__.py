"""List the heads and recipes, or the encoders, or print the options and layers of one head: python -m models
[--encoders | --recipe R | --head NAME]."""

# torch, yaml and the heads are imported where they are used, so that --help stays quick
from __future__ import annotations

import argparse
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import models

if TYPE_CHECKING:
    from torch import nn

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
ENCODERS = Path(__file__).with_name("encoders.yaml")
CLASSES = 50
COLUMNS = {
    "encoder": "name",
    "flags of get_features.py": "flags",
    "Hz": "rate",
    "parameters": "parameters",
    "licence": "licence",
    "weights": "get",
    "published score": "score",
    "good for": "good_for",
}

# input shapes where --input is not given, by the head's first kind or the recipe's view
SHAPES = {
    "vector": (768, 1, 1),
    "sequence": (768, 1, 101),
    "grid": (768, 12, 101),
    "spectrogram": (1, 128, 431),
    "waveform": (1, 1, 220500),
    "mel": (1, 128, 431),
    "pooled": (768, 1, 1),
    "frames": (768, 1, 101),
    "tokens": (768, 12, 101),
    "latents": (128, 1, 375),
    "codes": (8, 1, 375),
    "wave": (1, 1, 220500),
    "fbank": (1, 128, 1024),
}


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with exit code 2."""
        self.exit(2, f"error: {message}\n")


def read_recipe(name: str) -> dict[str, Any]:
    """Read recipes/<name>.yaml, or the file of that path.

    Raises:
        models.HeadError: no such recipe, no YAML, or no head in it.
    """
    import yaml

    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml"))) or "none"
        raise models.HeadError(f"no recipe named {name} ({path}): choose one of {known}")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise models.HeadError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    head = recipe.get("head") if isinstance(recipe, dict) else None
    if not isinstance(head, dict) or "name" not in head:
        raise models.HeadError(f"{path} has no head: it needs a section 'head:' with a 'name:'")
    return recipe


def parse_shape(text: str) -> tuple[int, ...]:
    """(D, F, T) of a text like 1,128,431."""
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) != 3 or min(shape) < 1:
        raise models.HeadError(
            f"--input takes three whole numbers from 1, D,F,T such as 1,128,431, not {text!r}"
        )
    return shape


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Options from key=value texts; values are YAML, and 24,32 is a list."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise models.HeadError(f"--option takes key=value, not {pair!r}")
        options[key] = models.parse_option(key, value)
    return options


def list_all() -> list[str]:
    """Lines that list every head and every recipe."""
    heads = [
        (name, ", ".join(models.get_kinds(name)), models.get_about(name)) for name in models.list_heads()
    ]
    recipes = []
    for path in sorted(RECIPES.glob("*.yaml")):
        # a broken recipe must not hide the others
        try:
            recipe = read_recipe(str(path))
            recipes.append((path.stem, str(recipe["head"]["name"]), str(recipe.get("about", ""))))
        except models.HeadError as error:
            recipes.append((path.stem, "-", str(error)))
    lines = _format_table([("head", "kinds, best first", "about"), *heads])
    lines += (
        ["", *_format_table([("recipe", "head", "about"), *recipes])]
        if recipes
        else ["", f"no recipes in {RECIPES}"]
    )
    return lines


def list_encoders() -> list[tuple[str, ...]]:
    """The rows of the table of encoders, its header first; a dash where something is not known."""
    import yaml

    encoders = yaml.safe_load(ENCODERS.read_text(encoding="utf-8"))
    rows = [tuple(str(encoder[key] or "-") for key in COLUMNS.values()) for encoder in encoders]
    return [tuple(COLUMNS), *rows]


def list_options(name: str) -> list[str]:
    """Lines about a head: what it is, the kinds of views it takes, each option with default and meaning."""
    defaults, texts = models.get_options(name), models.get_option_texts(name)
    lines = [
        f"{name}: {models.get_about(name)}",
        f"takes: {', '.join(models.get_kinds(name))} (best first)",
        "",
    ]
    if not defaults:
        return [*lines, "options: none", ""]
    lines.append("options (train.py --head.OPTION VALUE, or keys of a recipe's head section):")
    shown = {option: _format_value(default) for option, default in defaults.items()}
    widths = max(map(len, shown)), max(map(len, shown.values()))
    for option, value in shown.items():
        start = f"  {option.ljust(widths[0])}  {value.ljust(widths[1])}  "
        lines += textwrap.wrap(
            start + texts[option], 110, subsequent_indent=" " * len(start), drop_whitespace=True
        )
    return [*lines, ""]


def _format_value(value: Any) -> str:
    """An option's default as the command line takes it."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_format_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_format_value(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def describe(head: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """Lines of a table: each module with the shape of its output and its own parameters.

    Args:
        head: a head that is on the CPU.
        shape: (D, F, T) of the clip of zeros that is sent through, in eval mode.
    Returns:
        one line a module, indented by its path; "-" where it was not called or gives no single tensor; last
        the total.
    """
    import torch

    shapes: dict[nn.Module, str] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            shapes[module] = ", ".join(map(str, output.shape))

    handles = [module.register_forward_hook(note) for module in head.modules()]
    head.eval()
    with torch.no_grad():
        head(torch.zeros(1, *shape), None)
    for handle in handles:
        handle.remove()

    counted: set[int] = set()  # tied weights count once
    rows = [("layer", "kind", "output", "parameters")]
    for path, module in head.named_modules():
        own = {id(p): p.numel() for p in module.parameters(recurse=False) if id(p) not in counted}
        counted.update(own)
        indent = "  " * (path.count(".") + 1) if path else ""
        name = path.rpartition(".")[2] or head.config["name"]
        kind = type(module).__name__
        rows.append((indent + name, kind, shapes.get(module, "-"), f"{sum(own.values()):,}" if own else ""))
    total = sum(p.numel() for p in head.parameters())
    return [*_format_table(rows, right=3), f"parameters: {total:,}"]


def _format_encoders() -> list[str]:
    """The table of encoders with a few lines each, as all of its columns are too wide for a terminal."""
    _, *rows = list_encoders()
    lines = []
    for row in rows:
        name, flags, rate, parameters, licence, weights, score, good_for = row
        known = [f"{rate} Hz", f"{parameters} parameters" if parameters != "-" else "", weights]
        known += [
            f"licence {licence}" if licence != "-" else "",
            f"published score {score}" if score != "-" else "",
        ]
        lines += [f"{name:10}{good_for}", f"{'':10}{flags}"]
        lines += textwrap.wrap(
            "; ".join(filter(None, known)), 110, initial_indent=" " * 10, subsequent_indent=" " * 10
        )
        lines.append("")
    return lines


def _format_table(rows: list[tuple[str, ...]], right: int = -1) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.rjust(w) if i == right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def run(args: argparse.Namespace) -> list[str]:
    """The lines that the command prints."""
    if args.encoders:
        if args.recipe or args.head or args.input or args.option or args.classes is not None:
            raise models.HeadError("--encoders is a list: give it alone")
        return [
            *_format_encoders(),
            "--extractor hf takes any other audio encoder of transformers, by its hub id or folder; more: "
            "docs/encoders.md",
        ]
    if not args.recipe and not args.head:
        if args.input or args.option or args.classes is not None:
            raise models.HeadError(
                "--input, --option and --classes describe one head: name it with --recipe or --head"
            )
        return list_all()
    if args.recipe and args.head:
        raise models.HeadError("give --recipe or --head, not both")
    classes = CLASSES if args.classes is None else args.classes
    settings = dict(read_recipe(args.recipe)["head"]) if args.recipe else {"name": args.head}
    name, view = settings.pop("name"), settings.pop("view", None)
    options = {**settings, **parse_options(args.option)}
    for key in options:
        # These would collide with the arguments of models.build.
        if key in ("input_shape", "num_classes") or not isinstance(key, str):
            raise models.HeadError(
                f"{key!r} is no option of a head: the shape comes from --input, N from --classes"
            )
    view = view or models.get_kinds(name)[0]
    if args.input:
        shape = parse_shape(args.input)
        title = f"{name} on {args.input}, {classes} classes"
    elif view in SHAPES:
        shape = SHAPES[view]
        assumed = ",".join(map(str, shape))
        title = (
            f"{name} on {assumed} (assumed for its view {view}; --input D,F,T changes it), {classes} classes"
        )
    else:
        raise models.HeadError(
            f"{name} takes the view {view}, whose shape is not known here: give --input D,F,T"
        )
    head = models.build(name, shape, classes, **options)
    about = list_options(name) if args.head else []
    return [*about, title, "", *describe(head, shape)]


def main(argv: list[str] | None = None) -> int:
    """Print what the arguments choose; 0, or 2 after a user error."""
    parser = Parser(
        prog="python -m models",
        description="List the heads and recipes, or print the options and layers of one.",
    )
    parser.add_argument(
        "--encoders", action="store_true", help="list pretrained encoders: flags, size, licence, use"
    )
    parser.add_argument(
        "--recipe", metavar="R", help="a recipe's name (recipes/R.yaml), or a path to a .yaml file"
    )
    parser.add_argument("--head", metavar="NAME", help="a head's name, instead of a recipe")
    parser.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set an option of the head (repeatable), e.g. --option channels=24,32,64",
    )
    parser.add_argument("--input", metavar="D,F,T", help="shape of the view: channels, frequency, time")
    parser.add_argument("--classes", metavar="N", type=int, help=f"number of classes (default {CLASSES})")
    try:
        print("\n".join(run(parser.parse_args(argv))), flush=True)
    except models.HeadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
    return 0


if __name__ == "__main__":
    sys.exit(main())
