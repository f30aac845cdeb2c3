"""YAML files as plain data, limited in size and without aliases, which can expand to gigabytes or a cycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from earshot.core.errors import UserError, raise_if_temporary

LARGEST = 4 << 20  # bytes


def read(path: Path | str) -> Any:
    """The content of a YAML file: text, numbers, lists and dicts.

    Raises:
        UserError: the file is missing, too large, not YAML, or YAML of more than plain data.
    """
    import yaml

    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MB: not a settings file")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it refers to itself (*alias): write it out")
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply") from None
    except OSError as error:
        raise_if_temporary(path, error)
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
