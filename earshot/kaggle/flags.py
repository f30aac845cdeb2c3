"""The flags of what talks to Kaggle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from earshot.core.settings import Bounds


@dataclass(frozen=True)
class SubmitFlags:
    """sending it to Kaggle"""

    COMMON: ClassVar = ("submit", "message")
    submit: bool = False
    """send the submission to the competition, wait for its score, enter it in the ledger"""
    message: Annotated[str, tyro.conf.arg(aliases=["-m"])] = ""
    """what Kaggle and the ledger note beside it"""
    competition: str | None = None
    """the competition's SLUG on Kaggle, the last part of its address (default: the name of the data that the
    run learnt from)"""
    kernel: str | None = None
    """for a code competition: OWNER/NOTEBOOK/VERSION whose submission.csv is scored, instead of a file from
    here"""
    wait: Annotated[float, Bounds(0)] = 30.0
    """minutes to wait for the score; `python -m earshot.kaggle scores` fills in what came later"""
    yes: bool = False
    """do not ask before the day's last submission, nor before one that was sent already"""


@dataclass(frozen=True)
class BundleFlags:
    """a folder to upload as a dataset"""

    weights: tuple[str, ...] = ()
    """files and folders of pretrained weights to take along"""
    runs: tuple[str, ...] = ()
    """trained runs (folders, or names in --runs-folder) to take along: for a notebook that only predicts"""
    wheels: bool = False
    """take along the packages that Kaggle's image lacks, for a notebook without internet"""
    packages: tuple[str, ...] = ()
    """more packages for --wheels, as pip names them"""
    out: str = "bundle"
    """the folder to make"""
    slug: str = "earshot-kit"
    """the dataset's name on Kaggle: 6 to 50 small letters, digits and hyphens"""
    push: bool = False
    """upload it: a new private dataset, or a new version of it"""
    message: Annotated[str, tyro.conf.arg(aliases=["-m"])] = ""
    """note of the new version (default: its checksum)"""
    wait: Annotated[float, Bounds(0)] = 30.0
    """minutes to wait until Kaggle has the dataset ready"""
    runs_folder: str = "runs"
    """where runs are looked for by name"""


@dataclass(frozen=True)
class PushFlags:
    """a notebook to run on Kaggle"""

    competition: tuple[str, ...] = ()
    """slugs of the competitions to attach (default: as the metadata says)"""
    datasets: tuple[str, ...] = ()
    """datasets to attach, OWNER/SLUG (default: as the metadata says)"""
    kernels: tuple[str, ...] = ()
    """notebooks whose output to attach, OWNER/SLUG (default: as the metadata says)"""
    internet: Literal["on", "off"] | None = None
    """may it use the internet (default: as the metadata says, else on); code competitions forbid it"""
    accelerator: Literal["cpu", "NvidiaTeslaT4", "NvidiaL4", "NvidiaL4X1", "TpuV5E8"] | None = None
    """what it runs on (default: as the metadata says, else NvidiaTeslaT4, which is two of them)"""
    title: str | None = None
    """its title on Kaggle, of which its address is made (default: as the metadata says, else the file's
    name)"""
    out: str = "outputs"
    """where its log and its output go: OUT/<notebook>/"""
    wait: Annotated[float, Bounds(0)] = 720.0
    """minutes to wait for its end; 0: only push. The notebook goes on when the waiting ends"""


@dataclass(frozen=True)
class ScoresFlags:
    """scores that came later"""

    competition: str | None = None
    """the competition's SLUG (default: those of the ledger's submissions)"""
    ledger: str = "submissions/ledger.csv"
    """the ledger to fill in"""
