"""Flags for Kaggle."""

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
    """the message for Kaggle and the ledger"""
    competition: str | None = None
    """the competition's SLUG on Kaggle, the last part of its address (default: the name of the data that the
    run was trained on)"""
    kernel: str | None = None
    """for a code competition: OWNER/NOTEBOOK/VERSION whose submission.csv is scored, instead of a local
    file"""
    wait: Annotated[float, Bounds(0)] = 30.0
    """minutes to wait for the score; `python -m earshot.kaggle scores` enters later scores"""
    yes: bool = False
    """do not ask before the day's last submission, or a repeated one"""


@dataclass(frozen=True)
class BundleFlags:
    """a folder to upload as a dataset"""

    weights: tuple[str, ...] = ()
    """pretrained weights to include: files, folders, or hub ids that were downloaded before"""
    runs: tuple[str, ...] = ()
    """trained runs (folders, or names in --runs-folder) to include, with the weights of their extractors, for
    a notebook that only predicts"""
    wheels: bool = False
    """include the packages that Kaggle's image lacks, for a notebook without internet"""
    packages: tuple[str, ...] = ()
    """more packages for --wheels, as pip names them"""
    out: str = "bundle"
    """the folder to make"""
    slug: str = "earshot-kit"
    """the dataset's name on Kaggle: 6 to 50 lower-case letters, digits and hyphens"""
    push: bool = False
    """upload it: a new private dataset, or a new version of it"""
    message: Annotated[str, tyro.conf.arg(aliases=["-m"])] = ""
    """message for the new version (default: its checksum)"""
    wait: Annotated[float, Bounds(0)] = 30.0
    """minutes to wait until Kaggle has the dataset ready"""
    runs_folder: str = "runs"
    """the folder of runs"""


@dataclass(frozen=True)
class PushFlags:
    """a notebook to run on Kaggle"""

    competition: tuple[str, ...] = ()
    """slugs of the competitions to attach (default: as in the metadata)"""
    datasets: tuple[str, ...] = ()
    """datasets to attach, OWNER/SLUG (default: as in the metadata)"""
    kernels: tuple[str, ...] = ()
    """notebooks whose output to attach, OWNER/SLUG (default: as in the metadata)"""
    internet: Literal["on", "off"] | None = None
    """use the internet (default: as in the metadata, else on); code competitions forbid it"""
    accelerator: Literal["cpu", "NvidiaTeslaT4", "NvidiaL4", "NvidiaL4X1", "TpuV5E8"] | None = None
    """the accelerator (default: as in the metadata, else NvidiaTeslaT4, which is two of them)"""
    title: str | None = None
    """its title on Kaggle, which gives its address (default: as in the metadata, else the file's name)"""
    out: str = "outputs"
    """folder of its log and output: OUT/<notebook>/"""
    wait: Annotated[float, Bounds(0)] = 720.0
    """minutes to wait for its end; 0: only push. The notebook continues after that"""


@dataclass(frozen=True)
class ScoresFlags:
    """late scores"""

    competition: str | None = None
    """the competition's SLUG (default: those of the ledger's submissions)"""
    ledger: str = "submissions/ledger.csv"
    """the ledger to fill in"""
