"""Stage 3: saved runs -> a submission, or predictions for any audio."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from earshot.core import cli, config
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
    "  python predict.py --runs A FILE ...          the most likely classes of files, on the terminal"
)


def list_groups() -> dict[str, Any]:
    """Title -> defaults of the flags."""
    from earshot.kaggle import submit

    return {"predict": config.PredictFlags(), "submit": submit.SubmitFlags()}


def blend_members(inside: list[Member], flags: config.PredictFlags) -> Member:
    """Blend the members as the flags say; print a fitted blend, and save it where it has a name."""
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


def fit_stretches(whole: Member, flags: config.PredictFlags, at: Device) -> None:
    """Fit how much neighbouring stretches count, for each run."""
    from earshot.competition.load import load
    from earshot.core import kaggle_paths
    from earshot.kaggle import download
    from earshot.prediction.fit_stretches import fit_run

    place = download.find_or_download(kaggle_paths.resolve_slug(flags.fit_stretches or ""), "data")
    competition = load(place)
    for run in whole.list_runs():
        print(f"{run.folder}: {fit_run(run, competition, flags.weights, at)}", flush=True)


def main(argv: list[str]) -> None:
    """Parse, open the runs, predict."""
    from earshot.kaggle import submit

    if "--microphone" in argv:
        raise UserError("--microphone was removed: python app.py opens a page with a microphone")
    filled, _ = cli.parse(
        {"predict": config.PredictFlags(), "submit": submit.SubmitFlags()}, argv, ABOUT, positional="files"
    )
    flags, sending = filled["predict"], filled["submit"]
    if submit.submit_notebook(sending):  # of a notebook's version: nothing is predicted here
        return
    # In `--runs A FILE ...` the files are parsed as runs. A run is a folder, so they can be told apart.
    files = [name for name in flags.runs if Path(name).is_file()]
    inside = members.open_members(tuple(name for name in flags.runs if name not in files), flags.runs_folder)
    files += filled["files"]
    if flags.name is not None:
        saved_blend.check_name(
            flags.name, Path(flags.runs_folder) / flags.name, [member.folder for member in inside]
        )
    if not files:  # else scripts read a line per file
        print(f"runs: {', '.join(map(str, inside))}")  # before torch is imported, which takes seconds
    from earshot.core import device
    from earshot.core.files import check_output

    out = flags.out or ("submissions/predictions.csv" if flags.audio else "submissions/submission.csv")
    check_output(out)
    send = submit.prepare_submission(
        sending, inside[0].list_runs(), flags.features, bool(files or flags.audio)
    )
    from earshot.prediction import predict_runs

    at = device.choose(flags.device)
    if flags.fit_stretches and (files or flags.audio):
        raise UserError("--fit-stretches is for a competition's rows: leave out --audio and files")
    if files and flags.audio:
        raise UserError("give files or --audio FOLDER, not both")
    if files or flags.audio:
        predict_runs.predict_files(
            blend_members(inside, flags), flags, files or [flags.audio], bool(files), Path(out), at
        )
    else:
        whole = blend_members(inside, flags)
        if flags.fit_stretches:
            fit_stretches(whole, flags, at)
        if predict_runs.predict_cache(
            whole, flags.features, Path(out), at, sending.message, flags.name, flags.smooth
        ):
            send(Path(out))
    if flags.name is not None and flags.report and not files:
        from earshot.report.make import report_on

        report_on(Path(flags.runs_folder) / flags.name, print)


if __name__ == "__main__":
    cli.run(main)
