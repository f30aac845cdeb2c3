"""The official client, signed in and quiet; its errors become one line with a fix."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from earshot.core.errors import UserError

CREDENTIALS = (
    "make a token at https://www.kaggle.com/settings (API, generate new token) and put it in "
    "~/.kaggle/access_token, or into the environment variable KAGGLE_API_TOKEN; `kaggle auth login` does "
    "that in a browser"
)
POLL = 10.0  # seconds between the first two polls, half as long again each time ...
SLOWEST = 60.0  # ... up to this


class NotFound(UserError):
    """Kaggle answered 404, or 403, which it also does for private data of others."""


def connect() -> Any:
    """The client, signed in.

    Raises:
        UserError: no or wrong credentials, no network, or the package is missing.
    """
    with translate_errors("Kaggle"):
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi
        except ImportError as error:
            raise UserError(
                f"the official client cannot be imported ({error}): pip install 'kaggle>=2.2.5' six"
            ) from None
        api = KaggleApi()
        # it prints the Authorization header
        api.args = [argument for argument in api.args if argument != "--verbose"]
        try:
            api.authenticate()
        except SystemExit:
            raise UserError(f"no Kaggle credentials found: {CREDENTIALS}") from None
    return api


def get_user(api: Any) -> str:
    """The user name of the credentials."""
    return str(api.get_config_value("username") or "")


@contextlib.contextmanager
def translate_errors(
    what: str, *, forbidden: str = "", absent: str = "", api: Any = None
) -> Iterator[io.StringIO]:
    """A context in which the client's output is captured, and its errors become one line.

    Args:
        what: begins the line.
        forbidden, absent: what to do about 403 and 404, where there is more to say than the usual.
        api: its credentials are removed from messages.
    Yields:
        the captured output.
    """
    import requests

    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            yield output
    except UserError:
        raise
    except requests.exceptions.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        kind = NotFound if status in (403, 404) else UserError
        raise kind(hide(f"{what}: {_explain_status(status, error, forbidden, absent)}", api)) from None
    except requests.exceptions.ChunkedEncodingError:
        raise UserError(
            f"{what}: the connection broke off; the same command continues the download"
        ) from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        raise UserError(
            f"{what}: can't reach Kaggle: is there a network? In a notebook, switch Internet on, or "
            "attach the data instead; the same command tries again"
        ) from None
    except OSError as error:
        if not isinstance(error, requests.exceptions.RequestException):
            raise  # a disk error: reported by the scripts
        raise UserError(hide(f"{what}: {_shorten(error)}", api)) from None
    except Exception as error:  # the client raises ValueError with a sentence, and anything for odd responses
        printed = output.getvalue().strip().splitlines()
        more = f" ({printed[-1][:160]})" if printed else ""
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UserError(hide(f"{what}: {name}{_shorten(error)}{more}", api)) from None


def _explain_status(status: int, error: Exception, forbidden: str, absent: str) -> str:
    """The meaning of an HTTP status, and what to do."""
    reason = _shorten(error)
    if status == 401:
        return f"Kaggle rejects the credentials (401): {CREDENTIALS}"
    if status == 403:
        return (
            f"Kaggle forbids it (403: {reason}): {forbidden or 'is it yours, or public? Is the name right?'}"
        )
    if status == 404:
        return (
            "not found on Kaggle (404): "
            f"{absent or 'check the spelling; it is the last part of the page address'}"
        )
    if status == 429:
        return "too many requests (429): wait some minutes, then repeat the command"
    if status >= 500:
        return f"Kaggle has an internal error ({status}): repeat the command later"
    return f"Kaggle refuses ({status}): {reason}"


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__


def hide(text: str, api: Any = None) -> str:
    """The text without the credentials."""
    secrets = [os.environ.get(name) for name in ("KAGGLE_KEY", "KAGGLE_API_TOKEN")]
    secrets += [api.get_config_value(name) for name in ("key", "token")] if api is not None else []
    for secret in secrets:
        if secret and len(secret) > 5:
            text = text.replace(secret, "***")
    return text


def wait(ask: Callable[[], tuple[str, bool]], minutes: float) -> bool:
    """Poll until it is done, and print changes; False when the time is up.

    Args:
        ask: returns the state in words, and whether it is final.
    """
    end, pause, before, began = time.monotonic() + 60 * minutes, POLL, "", time.monotonic()
    while True:
        state, done = ask()
        if state != before:
            print(f"  {state} ({time.monotonic() - began:.0f} s)", flush=True)
        if done or time.monotonic() >= end:
            return done
        before = state
        time.sleep(max(min(pause, end - time.monotonic()), 0))
        pause = min(1.5 * pause, SLOWEST)


def confirm(question: str, yes: bool) -> None:
    """Ask the user whether to continue.

    Raises:
        UserError: no, or there is no terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question}: no terminal to confirm on; add --yes to go on")
    if input(f"{question}. Continue? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("nothing was sent")
