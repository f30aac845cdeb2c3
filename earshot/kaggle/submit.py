"""Submits to Kaggle: checks the day's limit, sends, waits for the score, enters it in the ledger."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot.core.errors import UserError
from earshot.core.files import hash_file, hash_value
from earshot.kaggle import client
from earshot.kaggle.download import NAME
from earshot.kaggle.flags import SubmitFlags
from earshot.prediction import ledger

if TYPE_CHECKING:
    from earshot.training.run import Run

LEDGER = Path("submissions") / ledger.NAME


def submit_notebook(flags: SubmitFlags) -> bool:
    """Submit a notebook's version to a code competition; False where --kernel is not given.

    Raises:
        UserError: incomplete flags, or the user or Kaggle refuses.
    """
    if flags.kernel is None:
        return False
    parts = re.fullmatch(rf"({NAME}/{NAME})/(\d+)", flags.kernel)
    if not parts or not flags.submit or not flags.competition:
        raise UserError(
            f"--kernel {flags.kernel}: a code competition needs all of --submit --competition SLUG --kernel "
            "OWNER/NOTEBOOK/VERSION (the version is what `python -m earshot.kaggle push` prints)"
        )
    api = client.connect()
    row = {
        "time": format_now(),
        "competition": flags.competition,
        "file": flags.kernel,
        "sha256": hash_value(flags.kernel)[:16],
    }
    check_quota(api, flags)
    confirm_resubmission(flags, row["sha256"], LEDGER)
    with client.translate_errors("the submission", api=api, **get_hints(flags.competition)):
        reply = api.competition_submit_code(
            "submission.csv",
            flags.message,
            flags.competition,
            kernel=parts[1],
            kernel_version=int(parts[2]),
            quiet=True,
        )
    record_submission(api, flags, reply, row, LEDGER)
    return True


def prepare_submission(
    flags: SubmitFlags, runs: Sequence[Run], features: str | None, loose: bool
) -> Callable[[Path], None]:
    """Check everything that may refuse a submission before it is computed; returns the function that sends
    the submission's file.

    Args:
        runs, features: the runs that predict, and the cache that they predict (default: each run's own),
            which hold the competition's name.
        loose: other audio than the competition's is predicted.
    Raises:
        UserError: nothing to submit, no credentials, none left today, or the user says no.
    """
    if not flags.submit:
        return lambda out: None
    if loose:
        raise UserError("--submit sends the competition's clips: remove the audio files")
    name = flags.competition
    if not name:
        from earshot.training import run_cache

        name = str(run_cache.open_run_cache(runs[0], features).record.get("competition", ""))
    if name == "sample" or not re.fullmatch(NAME, name):
        raise UserError(
            f"--submit: {name or 'the data'} is not a competition on Kaggle: name it with --competition SLUG"
        )
    flags = replace(flags, competition=name)
    api = client.connect()
    check_quota(api, flags)

    def send(out: Path) -> None:
        path, content = out.parent / ledger.NAME, hash_file(out)
        confirm_resubmission(flags, content, path)
        with client.translate_errors("the submission", api=api, **get_hints(name)) as printed:
            reply = api.competition_submit(str(out), flags.message, name, quiet=True)
        # here the client returns a message instead of raising
        if reply.message == api.COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE:
            reason = f"the upload of {out} failed {printed.getvalue().strip()[-160:]}"
            raise UserError(client.hide(f"{reason}: nothing was submitted; repeat the command", api))
        row = {"time": format_now(), "competition": name, "file": out.name, "sha256": content[:16]}
        record_submission(api, flags, reply, row, path)

    return send


def format_now() -> str:
    """The time in the ledger's format."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def get_hints(competition: str) -> dict[str, str]:
    """What to do about 403 and 404 for a competition."""
    return {
        "forbidden": "join the competition and accept its rules at "
        f"https://www.kaggle.com/competitions/{competition}/rules",
        "absent": f"there is no competition {competition} that takes submissions: its SLUG is the last part "
        "of its address (--competition SLUG)",
    }


def check_quota(api: Any, flags: SubmitFlags) -> None:
    """Print how many submissions are left today, and ask before the last."""
    with client.translate_errors("the submissions left today", api=api, **get_hints(str(flags.competition))):
        limits = api.competition_get_submission_limits(flags.competition)
    left, today, total = limits.num_allowed_now or 0, limits.num_today or 0, limits.num_total or 0
    if not left and not total and not limits.limited_by_total:
        # All are zero before the first submission.
        print(f"submissions to {flags.competition}: none yet; the daily limit is known after the first")
        return
    print(f"submissions to {flags.competition}: {today} today, {left} left, {total} in all", flush=True)
    if not left:
        over = "in this competition" if limits.limited_by_total else "today: the limit resets at 0:00 UTC"
        raise UserError(f"none is left {over}; nothing was sent")
    if left == 1:
        client.confirm(
            f"this is the last submission of the {'competition' if limits.limited_by_total else 'day'}",
            flags.yes,
        )


def confirm_resubmission(flags: SubmitFlags, content: str, path: Path) -> None:
    """Ask before sending what was submitted already."""
    for row in ledger.read_rows(path):
        same = bool(row["sha256"]) and content.startswith(row["sha256"])
        if same and row.get("ref") and row["competition"] == flags.competition:
            score = f", public {row['public']}" if row["public"] else ""
            when = f"at {row['time']} (ref {row['ref']}{score})"
            client.confirm(f"this content was already submitted {when}", flags.yes)
            return


def record_submission(api: Any, flags: SubmitFlags, reply: Any, row: dict[str, str], path: Path) -> None:
    """Enter an accepted submission in the ledger, and wait for its score."""
    page = f"https://www.kaggle.com/competitions/{flags.competition}/submissions"
    if not reply.ref:
        reason = f"Kaggle returned no number for the submission ({reply.message or 'no message'})"
        raise UserError(client.hide(f"{reason}: check {page} before sending it again", api))
    row |= {"message": flags.message, "ref": str(reply.ref)}

    def enter(rows: list[dict[str, str]]) -> None:
        for old in reversed(rows):
            # predict.py entered it when it wrote it
            if old["sha256"] and row["sha256"].startswith(old["sha256"]) and not old.get("ref"):
                old.update({key: row[key] for key in ("message", "ref", "competition")})
                return
        rows.append({**dict.fromkeys(ledger.COLUMNS, ""), **row})

    ledger.edit_rows(path, enter)
    print(f"submitted to {flags.competition}, ref {reply.ref}: {reply.message}", flush=True)
    by_ref: dict[str, Any] = {}

    def ask() -> tuple[str, bool]:
        by_ref.update({str(entry.ref): entry for entry in list_submissions(api, str(flags.competition))})
        state = by_ref[row["ref"]].status.name.lower() if row["ref"] in by_ref else "pending"
        words = {"complete": "scored", "error": "not scored", "pending": "waiting for its score"}
        return words.get(state, state), state in ("complete", "error")

    if not client.wait(ask, flags.wait):
        print(f"no score after {flags.wait:g} minutes: `python -m earshot.kaggle scores` enters it later")
        return
    submission = by_ref[row["ref"]]
    if submission.status.name == "ERROR":
        reason = submission.error_description or "no reason given"
        raise UserError(f"Kaggle could not score submission {submission.ref}: {reason}; see {page}")
    enter_scores(path, [submission])
    private = f", private {submission.private_score}" if submission.private_score else ""
    print(f"score: public {submission.public_score or 'hidden'}{private}; {path}")


def list_submissions(api: Any, competition: str) -> list[Any]:
    """The newest submissions to a competition."""
    with client.translate_errors("the list of submissions", api=api, **get_hints(competition)):
        return [entry for entry in api.competition_submissions(competition, page_size=100) or [] if entry]


def enter_scores(path: Path, found: Sequence[Any]) -> int:
    """Enter the scores of submissions that the ledger has by number; returns how many rows changed."""
    scores = {str(entry.ref): (entry.public_score, entry.private_score) for entry in found}
    changed = 0

    def enter(rows: list[dict[str, str]]) -> None:
        nonlocal changed
        for row in rows:
            known = zip(("public", "private"), scores.get(row.get("ref") or "", ()), strict=False)
            new = {key: value for key, value in known if value and value != row[key]}
            row.update(new)
            changed += bool(new)

    ledger.edit_rows(path, enter)
    return changed


def update_scores(competition: str | None, path: Path) -> None:
    """List the submissions on Kaggle and enter scores that the ledger lacks."""
    known = dict.fromkeys(row["competition"] for row in ledger.read_rows(path) if row.get("ref"))
    names = [competition] if competition else list(known)
    if not names:
        raise UserError(
            f"{path} has no submission sent from here: name a competition with --competition SLUG"
        )
    api = client.connect()
    for name in names:
        found = list_submissions(api, name)
        print(f"{name}: {len(found)} submissions")
        for entry in found:
            words = [
                f"{entry.date:%Y-%m-%d %H:%M}" if entry.date else "",
                f"public {entry.public_score or '-'}",
                f"private {entry.private_score or '-'}",
                entry.status.name.lower(),
                entry.file_name or "",
                entry.description or "",
            ]
            print(f"  {entry.ref}  " + "  ".join(word for word in words if word))
        if path.exists():
            print(f"{path}: {enter_scores(path, found)} rows changed")
