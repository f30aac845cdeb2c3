"""The official client: signed in, kept quiet, and what it raises in one line with the fix."""

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
    "make a token at https://www.kaggle.com/settings (API, generate new token) and put it into "
    "~/.kaggle/access_token, or into the environment variable KAGGLE_API_TOKEN; `kaggle auth login` does it "
    "in a browser"
)
POLL = 10.0  # seconds from the first question to the second, half as long again each time ...
SLOWEST = 60.0  # ... up to this


class NotFound(UserError):
    """Kaggle answered 404, or 403, which it also says of what is another's and private."""


def connect() -> Any:
    """The client, signed in.

    Raises:
        UserError: no credentials, refused ones, no network, or the package is missing.
    """
    with translate_errors("Kaggle"):
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi
        except ImportError as error:
            raise UserError(
                f"the official client cannot be imported ({error}): pip install 'kaggle>=2.2.5' six"
            ) from None
        api = KaggleApi()
        # that prints the Authorization header
        api.args = [argument for argument in api.args if argument != "--verbose"]
        try:
            api.authenticate()
        except SystemExit:
            raise UserError(f"Kaggle needs credentials, and there are none: {CREDENTIALS}") from None
    return api


def get_user(api: Any) -> str:
    """The name of whose credentials these are."""
    return str(api.get_config_value("username") or "")


@contextlib.contextmanager
def translate_errors(
    what: str, *, forbidden: str = "", absent: str = "", api: Any = None
) -> Iterator[io.StringIO]:
    """Within, what the client prints is kept, not shown, and what it raises becomes one line.

    Args:
        what: begins the line.
        forbidden, absent: what to do about 403 and 404, where there is more to say than the usual.
        api: whose credentials are not to be repeated, should an answer hold them.
    Yields:
        what the client printed so far.
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
            f"{what}: the connection broke off; what came is kept, and the same command goes on from there"
        ) from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        raise UserError(
            f"{what}: Kaggle cannot be reached: is there a network? In a notebook, switch Internet on, or "
            "attach the data instead; the same command tries again"
        ) from None
    except OSError as error:
        if not isinstance(error, requests.exceptions.RequestException):
            raise  # a disk's: said where the scripts say it
        raise UserError(hide(f"{what}: {_shorten(error)}", api)) from None
    except Exception as error:  # the client raises ValueError with a sentence, and what odd answers lead to
        printed = output.getvalue().strip().splitlines()
        more = f" ({printed[-1][:160]})" if printed else ""
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UserError(hide(f"{what}: {name}{_shorten(error)}{more}", api)) from None


def _explain_status(status: int, error: Exception, forbidden: str, absent: str) -> str:
    """What an HTTP status means here, and what to do."""
    answer = _shorten(error)
    if status == 401:
        return f"Kaggle refuses the credentials (401): {CREDENTIALS}"
    if status == 403:
        return (
            f"Kaggle forbids it (403: {answer}): {forbidden or 'is it yours, or public? Is the name right?'}"
        )
    if status == 404:
        return (
            "not found on Kaggle (404): "
            f"{absent or 'look at the spelling; it is the last part of the address of its page'}"
        )
    if status == 429:
        return "too many requests (429): wait some minutes, then repeat the command"
    if status >= 500:
        return f"Kaggle has a fault of its own ({status}): repeat the command later"
    return f"Kaggle refuses ({status}): {answer}"


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__


def hide(text: str, api: Any = None) -> str:
    """The text without the credentials, should it hold them."""
    secrets = [os.environ.get(name) for name in ("KAGGLE_KEY", "KAGGLE_API_TOKEN")]
    secrets += [api.get_config_value(name) for name in ("key", "token")] if api is not None else []
    for secret in secrets:
        if secret and len(secret) > 5:
            text = text.replace(secret, "***")
    return text


def wait(ask: Callable[[], tuple[str, bool]], minutes: float) -> bool:
    """Ask again and again until it is done, saying what is new; False when the time is up.

    Args:
        ask: the state in words, and whether that is the end.
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
    """Go on if the user says so.

    Raises:
        UserError: no, or nobody is there to be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question}: nobody is here to be asked; add --yes if so")
    if input(f"{question}. Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("nothing was sent")
