"""python -m earshot.kaggle bundle | push NOTEBOOK | scores."""

from __future__ import annotations

from pathlib import Path

from earshot.core import cli, disk_space, help_pages
from earshot.core.errors import UserError
from earshot.core.files import hold_lock
from earshot.kaggle.flags import BundleFlags, PushFlags, ScoresFlags

ABOUT = (
    "Work with Kaggle through its official client.\n"
    "\n"
    "  python -m earshot.kaggle bundle              one folder to upload as a dataset: code, --weights, "
    "--runs, --wheels; --push\n"
    "  python -m earshot.kaggle push NOTEBOOK       run a notebook there: log on the terminal, "
    "output in outputs/\n"
    "  python -m earshot.kaggle scores              list submissions, and enter late scores in "
    "the ledger"
)


def main(argv: list[str]) -> None:
    """Parse the verb and its flags, and run it."""
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if help_pages.wants_help([verb]):
        print(ABOUT + "\n\nEach has its own --help.")
    elif verb == "bundle":
        make_bundle(cli.parse({"bundle": BundleFlags()}, rest, ABOUT)[0]["bundle"])
    elif verb == "push":
        from earshot.kaggle import push

        filled, _ = cli.parse({"push": PushFlags()}, rest, ABOUT, positional="notebook")
        if len(filled["notebook"]) != 1:
            raise UserError(
                "push what? Name one notebook: python -m earshot.kaggle push notebooks/NAME.ipynb"
            )
        push.push_notebook(filled["notebook"][0], filled["push"])
    elif verb == "scores":
        from earshot.kaggle import submit

        flags = cli.parse({"scores": ScoresFlags()}, rest, ABOUT)[0]["scores"]
        submit.update_scores(flags.competition, Path(flags.ledger))
    else:
        raise UserError(f"unknown verb {verb}: bundle, push or scores")


def make_bundle(flags: BundleFlags) -> None:
    """Make the bundle, upload it with --push, and print the next step."""
    from earshot.kaggle import bundle, push

    with hold_lock(Path(flags.out).absolute().parent / ".bundle", "the bundle in"):
        out = bundle.make(flags)
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        print(f"bundle: {out}, {disk_space.format_bytes(size)}, checksums in {out / bundle.SUMS}")
        if flags.push:
            push.push_dataset(out, flags)
        else:
            print(
                f"next: the same with --push; or upload {out} at https://www.kaggle.com/datasets (New "
                "Dataset)"
            )


if __name__ == "__main__":
    cli.run(main)
