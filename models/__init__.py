"""The heads: small networks from a cached view (D, F, T) to class logits, found by name.

A new head is one new file in this folder; nothing else needs to know about it:

    @register("my_head", kinds=("spectrogram",), about="what it is, in one line")
    class MyHead(Head):
        def __init__(self, input_shape: tuple[int, int, int], num_classes: int, *, dropout: float = 0.1): ...
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor: ...

`x` is (B, D, F, T); `mask` is (B, T), True where a frame is real audio, or None where all are; the logits are
(B, num_classes). The keyword-only arguments are the head's options, explained in the class's `Args`. `Head`
(models/head.py) has the optional hooks with their defaults, `sklearn_head` those of scikit-learn heads.
docs/add-a-head.md is a guide.
"""

# no torch here, so that `python -m models --help` and `from models import HeadError` stay quick
from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from .head import Head

__all__ = [
    "Head",
    "HeadError",
    "build",
    "complete_options",
    "get_about",
    "get_kinds",
    "get_needs",
    "get_options",
    "list_heads",
    "rebuild",
    "register",
]

# What a view can be, (D, F, T) a clip: a test compares them with earshot's.
Kind = Literal["vector", "sequence", "grid", "spectrogram", "waveform", "codes"]
Needs = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]


class HeadError(ValueError):
    """A user's mistake about a head, in one line."""


class _Entry(NamedTuple):
    cls: type
    kinds: tuple[Kind, ...]
    about: str
    needs: Needs


_HEADS: dict[str, _Entry] = {}
_complete = False


def register(
    name: str, *, kinds: Sequence[Kind], about: str, needs: Needs | None = None
) -> Callable[[type], type]:
    """Class decorator that puts a head into the registry.

    Args:
        name: what recipes call it.
        kinds: the kinds of views it takes, best first.
        about: one line for the list of heads.
        needs: settings of the view that its published weights (option `weights`) require: rate, bands, hop in
            seconds, filter bank; or a function that gives them from the head's options.
    Returns:
        the decorator, which returns the class unchanged.
    """

    unknown = [kind for kind in kinds if kind not in get_args(Kind)]
    if unknown:
        raise HeadError(f"{name}: no kind {unknown[0]}: choose from {', '.join(get_args(Kind))}")

    def add(cls: type) -> type:
        known = _HEADS.get(name)
        # Reloading a module (notebooks do) gives a new class of the same origin: that is no clash.
        if known and (known.cls.__module__, known.cls.__qualname__) != (cls.__module__, cls.__qualname__):
            raise HeadError(f"two heads are called {name}: {known.cls.__module__} and {cls.__module__}")
        _HEADS[name] = _Entry(cls, tuple(kinds), about, needs or {})
        return cls

    return add


def __getattr__(name: str) -> Any:
    if name != "Head":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .head import Head  # with torch, which is why it waits until it is needed

    return Head


def _discover() -> None:
    global _complete
    if _complete:
        return
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            _import_head(module.name)
    _complete = True


def _import_head(name: str) -> None:
    try:
        importlib.import_module(f"{__name__}.{name}")
    except (SyntaxError, NameError, AttributeError, TypeError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise HeadError(f"models/{name}.py cannot be imported ({text})") from error


def _find_entry(name: str) -> _Entry:
    # A head mostly lives in the file of its name: then the other heads' imports (timm, transformers)
    # are spared.
    if not isinstance(name, str):
        raise HeadError(f"a head's name is text, not {name!r}")
    if name not in _HEADS and name.isidentifier() and not name.startswith("_"):
        if importlib.util.find_spec(f"{__name__}.{name}"):
            _import_head(name)
    if name not in _HEADS:
        _discover()
    if name not in _HEADS:
        near = difflib.get_close_matches(name, _HEADS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise HeadError(f"there is no head called {name!r}{hint}; the heads are {', '.join(sorted(_HEADS))}")
    return _HEADS[name]


def list_heads(filter: str = "*") -> list[str]:
    """The names of all heads that match a shell pattern, sorted."""
    _discover()
    return sorted(name for name in _HEADS if fnmatch(name, filter))


def get_kinds(name: str) -> tuple[Kind, ...]:
    """The kinds of views that a head takes, best first."""
    return _find_entry(name).kinds


def get_needs(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a view that a head's weights require; {} without weights."""
    needs = _find_entry(name).needs
    if callable(needs):
        return dict(needs(options))
    return dict(needs) if options.get("weights") else {}


def complete_options(
    name: str, options: dict[str, Any], describe_network: Callable[[str, str], dict[str, Any]]
) -> dict[str, Any]:
    """A head's options with what its weights say, see `Head.complete_options`."""
    head: type[Head] = _find_entry(name).cls
    return head.complete_options(options, describe_network)


def get_about(name: str) -> str:
    """One line that says what a head is."""
    return _find_entry(name).about


def get_options(name: str) -> dict[str, Any]:
    """A head's options with their defaults: the keyword-only arguments of its class."""
    return _get_defaults(_find_entry(name).cls)


def get_option_texts(name: str) -> dict[str, str]:
    """What each option of a head means, from the `Args` of its class; "" where they do not say."""
    from docstring_parser import parse  # tyro needs it, too

    texts = {one.arg_name: one.description for one in parse(_find_entry(name).cls.__doc__ or "").params}
    return {option: " ".join((texts.get(option) or "").split()) for option in get_options(name)}


def _get_defaults(cls: type) -> dict[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def parse_option(key: str, text: str) -> Any:
    """A head's option from the command line: YAML, and 24,32 is a list; HeadError if it is invalid or
    its key reserved."""
    import yaml

    if key in ("name", "input_shape", "num_classes"):
        raise HeadError(
            f"{key} is not an option of a head: it follows from the head's name, the features (--input) "
            "and the labels (--classes)"
        )
    if "," in text and text[0] not in "[{\"'":
        text = f"[{text.rstrip(',')}]"
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise HeadError(f"option {key}={text} is not valid YAML") from None


def build(name: str, input_shape: Sequence[int], num_classes: int, **options: Any) -> Head:
    """Build a head; `head.config` keeps what is needed to build it again.

    Args:
        name: a registered head.
        input_shape: (D, F, T) of its view.
        num_classes: width of the logits.
        options: the head's own settings; lists do for tuples, and "1e-4", which YAML reads as text, for a
            number.
    Returns:
        the head, with fresh weights. `head.config` is plain JSON: name, input_shape, num_classes and every
        option, defaults included, so that a checkpoint outlives a changed default.
    Raises:
        HeadError: unknown head or option, or a shape or value that the head cannot take.
    """
    entry = _find_entry(name)
    shape = _check_shape(name, input_shape)
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise HeadError(f"{name}: the number of classes is a whole number from 1, not {num_classes!r}")
    defaults = _get_defaults(entry.cls)
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        known = ", ".join(f"{key}={value!r}" for key, value in defaults.items()) or "none"
        raise HeadError(f"{name} has no option {', '.join(unknown)}; its options are {known}")
    settings = {
        key: _convert_like(default, options.get(key, default), name, key) for key, default in defaults.items()
    }
    try:
        head = entry.cls(shape, num_classes, **settings)
    except HeadError:
        raise
    except ValueError as error:
        raise HeadError(f"{name}: {error}") from error
    head.config = {
        "name": name,
        "input_shape": list(shape),
        "num_classes": num_classes,
        "options": {key: _to_plain(value) for key, value in settings.items()},
    }
    return head


def rebuild(config: dict[str, Any]) -> Head:
    """Build a head from another head's `config` (weights are loaded by the caller).

    Args:
        config: {"name", "input_shape", "num_classes", "options"}.
    Returns:
        the head, with fresh weights.
    """
    missing = [key for key in ("name", "input_shape", "num_classes") if key not in config]
    if missing:
        raise HeadError(f"this head's config lacks {', '.join(missing)}")
    return build(config["name"], config["input_shape"], config["num_classes"], **config.get("options") or {})


def _check_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    try:
        sizes = tuple(int(size) for size in shape)
        whole = all(size == given for size, given in zip(sizes, shape, strict=True))
    except (TypeError, ValueError, OverflowError):
        sizes, whole = (), False
    if len(sizes) != 3 or not whole or min(sizes) < 1:
        raise HeadError(f"{name}: the input shape is three whole numbers from 1, D,F,T, not {shape!r}")
    return sizes


def _convert_like(default: Any, value: Any, name: str, key: str) -> Any:
    """Bring a value from YAML or a flag to the type of the option's default, where that is a number, a tuple
    or true or false."""
    if isinstance(default, tuple):
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if isinstance(default, bool):
        if value not in (True, False):  # any other text or number would count as true
            raise HeadError(
                f"{name}: option {key} is true or false (default {str(default).lower()}), not {value!r}"
            )
        return bool(value)
    if not isinstance(default, (int, float)):
        return value
    wanted = type(default)
    try:
        number = wanted(value)
        # no NaN
        exact = not isinstance(value, bool) and number == (number if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact:
        kind = "a whole number" if wanted is int else "a number"
        raise HeadError(f"{name}: option {key} is {kind} (default {default!r}), not {value!r}")
    return number


def _to_plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    return value
