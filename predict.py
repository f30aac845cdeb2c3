"""Stage 3: saved runs -> a submission, or predictions for any audio."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot.core import cli, config
from earshot.core.deadline import parse_duration
from earshot.core.errors import UserError
from earshot.core.shell import join_command
from earshot.prediction import members, saved_blend
from earshot.prediction.members import Member

if TYPE_CHECKING:
    from earshot.core.device import Device

ABOUT = (
    "Predict with saved runs.\n"
    "\n"
    "  python predict.py --runs A B                 the competition's clips -> submissions/submission.csv\n"
    "  python predict.py --runs A B --blend auto    the same with fitted weights; --name C keeps the "
    "blend as runs/C\n"
    '  python predict.py --submit -m "message"      the same, sent to Kaggle and scored\n'
    "  python predict.py --runs A --audio FOLDER    a folder of new audio -> submissions/predictions.csv\n"
    "  python predict.py --runs A FILE ...          the most likely classes of files, on the terminal\n"
    "  python predict.py A --dry-run --budget 90m   how long a code competition's hidden clips will take"
)


def list_groups() -> dict[str, Any]:
    """Title -> defaults of the flags."""
    from earshot.kaggle import submit

    return {
        "predict": config.PredictFlags(),
        "dry_run": config.DryRunFlags(),
        "submit": submit.SubmitFlags(),
    }


def blend_members(inside: list[Member], flags: config.PredictFlags) -> Member:
    """Blend the members as the flags say; print a fitted blend, and save it where it has a name."""
    if flags.blend == "rank":
        from earshot.prediction import rank_blend

        whole = rank_blend.build(inside)
        if len(inside) > 1:
            print(rank_blend.describe_gain(inside))
        return whole
    if flags.blend == "mean" and flags.name is None:
        return members.mean_blend(inside)
    whole, found, oof, lines = members.fit_members(inside, flags.blend)
    for line in [
        f"out-of-fold, last epoch, {len(oof.ids)} clips",
        *lines,
        *members.format_table(found, whole.metric),
        members.format_weights(inside, found.fitted),
    ]:
        print(line)
    if flags.name is not None:
        folder = Path(flags.runs_folder) / flags.name
        saved_blend.save(folder, [member.folder for member in inside], whole.metric, found, oof)
        again = join_command("python", "predict.py", "--runs", saved_blend.format_run_name(folder))
        print(f"blend saved: {folder}; to predict with it: {again}")
    return whole


def check_flags(flags: config.PredictFlags, dry: config.DryRunFlags, files: list[str]) -> None:
    """UserError for flags that do not go together, before anything is opened."""
    parse_duration("--budget", dry.budget)
    if flags.hidden and ((flags.audio or files) and not dry.dry_run or flags.features):
        raise UserError(
            "--hidden predicts a competition's clips to submit: leave out --audio, --features and files"
        )
    if flags.max_hours is not None and not flags.hidden:
        raise UserError("--max-hours limits the features of --hidden: add --hidden, or leave it out")
    if not dry.dry_run and any(value is not None for value in (dry.files, dry.seconds, dry.cores)):
        raise UserError("--files, --seconds and --cores are for --dry-run: add --dry-run, or leave them out")
    if flags.cluster is not None and (not flags.audio or dry.dry_run):
        raise UserError("--cluster extracts the features of --audio FOLDER: add it, or leave --cluster out")
    if flags.blend == "rank" and (flags.name is not None or (files or flags.audio) and not dry.dry_run):
        raise UserError(
            "--blend rank compares the clips of a submission, and predicts nothing else: leave out --name, "
            "--audio and files, or use --blend mean or auto"
        )
    if dry.dry_run and flags.name is not None:
        raise UserError("--dry-run keeps nothing: leave out --name")
    if flags.fit_stretches and (files or flags.audio):
        raise UserError("--fit-stretches is for a competition's rows: leave out --audio and files")


def find_competition(named: str | None) -> str:
    """The folder or zip of a competition, by its name or path, or the only one that is here or attached."""
    from earshot.core import kaggle_paths
    from earshot.features import defaults
    from earshot.kaggle import download

    place = kaggle_paths.resolve_slug(named) if named else defaults.choose_competition("data")
    return download.find_or_download(place, "data") or place


def use_cores(count: int | None) -> None:
    """Leave this process so many of its cores, if it has more. Before torch is imported: it counts
    them."""
    here = sorted(os.sched_getaffinity(0))
    if count is not None and count < len(here):
        os.sched_setaffinity(0, here[:count])


def fit_stretches(whole: Member, flags: config.PredictFlags, at: Device) -> None:
    """Fit how much neighbouring stretches count, for each run."""
    from earshot.competition.load import load
    from earshot.prediction.fit_stretches import fit_run

    competition = load(find_competition(flags.fit_stretches))
    for run in whole.list_runs():
        print(f"{run.folder}: {fit_run(run, competition, flags.weights, at)}", flush=True)


def main(argv: list[str]) -> None:
    """Parse, open the runs, predict."""
    from earshot.kaggle import submit

    if "--microphone" in argv:
        raise UserError("--microphone was removed: python app.py opens a page with a microphone")
    began = time.perf_counter()
    filled, _ = cli.parse(list_groups(), argv, ABOUT, positional="files")
    flags, dry, sending = filled["predict"], filled["dry_run"], filled["submit"]
    # In `--runs A FILE ...` the files are parsed as runs. A run is a folder, so they can be told apart.
    names = [*flags.runs, *filled["files"]] if dry.dry_run else list(flags.runs)
    files = [name for name in names if Path(name).is_file()]
    names = [name for name in names if name not in files]
    files += [] if dry.dry_run else filled["files"]
    check_flags(flags, dry, files)
    if dry.dry_run and sending.submit:
        raise UserError("--dry-run predicts nothing that could be submitted: leave out --submit")
    if submit.submit_notebook(sending):  # of a notebook's version: nothing is predicted here
        return
    inside = members.open_members(tuple(names), flags.runs_folder)
    if flags.name is not None:
        saved_blend.check_name(
            flags.name, Path(flags.runs_folder) / flags.name, [member.folder for member in inside]
        )
    if not files:  # else scripts read a line per file
        print(f"runs: {', '.join(map(str, inside))}")  # before torch is imported, which takes seconds
    place = find_competition(sending.competition) if flags.hidden else None
    if dry.dry_run:
        use_cores(dry.cores)
    from earshot.core import device
    from earshot.core.files import check_output

    if dry.dry_run:
        from earshot.prediction.dry_run_report import print_dry_run

        whole, audio = blend_members(inside, flags), files or [name for name in [flags.audio] if name]
        print_dry_run(whole, flags, dry, audio, place, device.choose(flags.device), began)
        return
    out = flags.out or ("submissions/predictions.csv" if flags.audio else "submissions/submission.csv")
    check_output(out)
    send = submit.prepare_submission(
        sending, inside[0].list_runs(), flags.features, bool(files or flags.audio)
    )
    from earshot.prediction import predict_runs

    at = device.choose(device.name_local(flags.device, flags.cluster))  # with --cluster: of the heads alone
    if files and flags.audio:
        raise UserError("give files or --audio FOLDER, not both")
    if files or flags.audio:
        predict_runs.predict_files(
            blend_members(inside, flags), flags, files or [flags.audio], bool(files), Path(out), at
        )
    else:
        whole, hidden = blend_members(inside, flags), None
        if flags.fit_stretches:
            fit_stretches(whole, flags, at)
        if place is not None:
            from earshot.prediction.hidden_clips import HiddenClips

            hidden = HiddenClips(whole, place, flags.device)
            if not hidden.extract(at, flags.max_hours, flags.weights):
                print("nothing to submit: the competition has no clips without labels yet")
                return
        if predict_runs.predict_cache(
            whole, flags.features, Path(out), at, sending.message, flags.name, hidden, flags.smooth
        ):
            send(Path(out))
    if flags.name is not None and flags.report and not files:
        from earshot.report.make import report_on

        report_on(Path(flags.runs_folder) / flags.name, print)


if __name__ == "__main__":
    cli.run(main)
