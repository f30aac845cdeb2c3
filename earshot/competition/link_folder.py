"""A folder of links that merges several folders: a competition as if its archives were unpacked in place."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from earshot.competition import zip_file
from earshot.core.files import hash_value


def link_files(
    folder: Path, root: Path, more: Sequence[tuple[str, Path]], hidden: Collection[str]
) -> list[str]:
    """Make `folder` link to the files below `root`, and to more.

    Folders of one name are merged; of several files of one name the first is linked. Where the links are
    right already nothing is changed, so that other processes can go on reading.

    Args:
        more: folders with the path in `folder` where their files are to be seen, "" for its top.
        hidden: paths that are left out.
    Returns:
        The paths of files that hide others of another size.
    """
    links, shadowed = plan_links([("", root), *more], set(hidden))
    targets = {path: str(target) for path, target in links.items()}
    state = json.dumps({"of": str(root), "links": hash_value(targets)})

    def write(partial: Path) -> None:
        partial.mkdir(parents=True)
        for path, target in links.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).symlink_to(target)

    zip_file.fill_folder(folder, state, write)
    return shadowed


def plan_links(sources: list[tuple[str, Path]], hidden: set[str]) -> tuple[dict[str, Path], list[str]]:
    """The links, a target for each path, and the paths of files that hide others of a different size."""
    links: dict[str, Path] = {}
    shadowed: list[str] = []
    places = [place for place, _ in sources]
    opened = {parent for path in (*places, *hidden) for parent in list_parents(path)}

    def show(path: str) -> None:
        candidates = [find_target(path, place, folder) for place, folder in sources]
        # folders of links come from other folders, and are left out
        targets = [target for target in candidates if target and zip_file.find_mirror_source(target) is None]
        if targets and not os.path.isdir(targets[0]):
            links[path] = targets[0]
            sizes = {os.path.getsize(target) for target in targets if os.path.isfile(target)}
            if len(sizes) > 1:
                shadowed.append(path)
        elif len(targets) == 1 and path not in opened:
            links[path] = targets[0]  # one link for a whole folder
        else:
            head = f"{path}/" if path else ""
            names = {name for target in targets for name in list_visible(target)}
            below = [place for place in places if place.startswith(head) and place != path]
            names |= {place[len(head) :].split("/")[0] for place in below}
            for name in sorted(names):
                if head + name not in hidden:
                    show(head + name)

    show("")
    return links, shadowed


def find_target(path: str, place: str, folder: Path) -> Path | None:
    """The file or folder at a path of a folder that is linked at a place; None without one."""
    if place and path != place and not path.startswith(f"{place}/"):
        return None
    target = folder / path[len(place) :].lstrip("/")
    return target if os.path.lexists(target) else None


def list_visible(folder: Path) -> list[str]:
    """The names in a folder that are not hidden; none where it is not a folder."""
    if not os.path.isdir(folder):
        return []
    return [name for name in os.listdir(folder) if not name.startswith(".")]


def list_parents(path: str) -> list[str]:
    """The folders above a relative path, "" among them."""
    parts = path.split("/") if path else []
    return ["/".join(parts[:n]) for n in range(len(parts))]
