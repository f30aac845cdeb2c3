"""Near-duplicates: one recording on both sides of a split makes scores optimistic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from earshot.doctor.embeddings import Clips
from earshot.doctor.findings import Finding, report_ok, warn, write_csv
from earshot.doctor.similarity import centre, find_nearest, whiten

NEIGHBOURS = 10  # of each clip: larger clusters of copies are still linked together
# robust standard deviations above the typical nearest neighbour, plus one for every tenfold of 1,000 clips
FAR = 4.0
FEW = 50  # clips: with fewer the whitened embeddings of any two are nearly at right angles
LEAST_PLAIN = 0.9  # the least cosine before whitening of a pair in such a small set
CERTAIN = 0.95  # always a copy: where most clips have copies, the typical neighbour is one


@dataclass(frozen=True)
class Duplicates:
    """Pairs (a, b, whitened cosine) of clip indices, a before b.

    `threshold` is their least whitened cosine. `closest` (clips,) is that of each clip's nearest neighbour in
    another fold or split. `plain` has the pairs' cosines before whitening, if there are `few` clips.
    """

    pairs: list[tuple[int, int, float]]
    threshold: float
    closest: np.ndarray
    plain: dict[tuple[int, int], float] = field(default_factory=dict)
    few: bool = False

    @property
    def least(self) -> str:
        """The least scores of a pair, in words."""
        plain = f" and a plain cosine of at least {LEAST_PLAIN} (fewer than {FEW} clips)" if self.few else ""
        return f"whitened cosine of at least {self.threshold:.3f}{plain}"

    def format_score(self, a: int, b: int, cosine: float) -> str:
        """The scores by which a pair was found."""
        plain = f", plain cosine {self.plain[a, b]:.3f}" if (a, b) in self.plain else ""
        return f"whitened cosine {cosine:.3f}{plain}"


def estimate_threshold(closest: np.ndarray) -> float:
    """The whitened cosine above which a neighbour is a copy: an outlier among the nearest neighbours.

    Median + 4 robust standard deviations (1.4826 x median absolute deviation) on Fisher's z scale, arctanh of
    the cosine. One more for every tenfold of 1,000 clips: the tail is longer than that of a normal
    distribution, and more clips reach further into it.
    """
    z = np.arctanh(np.clip(closest, -0.999999, 0.999999))
    middle = np.median(z)
    far = FAR + max(0.0, np.log10(len(closest) / 1000))
    return float(min(np.tanh(middle + far * 1.4826 * np.median(np.abs(z - middle))), CERTAIN))


def find_duplicates(clips: Clips, threshold: float | None) -> Duplicates:
    """Pairs of clips that are too similar to be two recordings, except those known to belong together."""
    embedded_rows, parts = np.flatnonzero(clips.embedded), clips.number_parts()
    embedded = clips.embeddings[embedded_rows]
    cosines, indices = find_nearest(whiten(embedded), parts[embedded_rows], NEIGHBOURS)
    indices = embedded_rows[indices]
    # Clips of one source often share a fold without being marked as a group: neighbours in other folds show
    # what is typical.
    own_place = clips.place[embedded_rows][:, None]
    elsewhere = (own_place != clips.place[indices]) | (own_place == "")
    best = np.where(elsewhere, cosines, -np.inf).max(1)
    best = np.where(np.isfinite(best), best, cosines[:, -1])
    best = best[np.isfinite(best)]
    limit = threshold if threshold is not None else estimate_threshold(best) if len(best) else 1.0
    pairs = {}
    for row, column in np.argwhere(cosines >= limit).tolist():
        a, b = sorted((int(embedded_rows[row]), int(indices[row, column])))
        pairs[a, b] = float(cosines[row, column])
    few = threshold is None and len(embedded_rows) < FEW
    plain: dict[tuple[int, int], float] = {}
    if few:
        rows = dict(zip(embedded_rows.tolist(), centre(embedded), strict=True))
        plain = {(a, b): float(rows[a] @ rows[b]) for a, b in pairs}
        pairs = {pair: c for pair, c in pairs.items() if plain[pair] >= LEAST_PLAIN}
    by_content: dict[str, int] = {}
    for index, digest in enumerate(clips.digests):
        first = by_content.setdefault(digest, index)
        if digest and parts[first] != parts[index]:
            pairs[first, index] = 1.0
    ordered = sorted(((a, b, c) for (a, b), c in pairs.items()), key=lambda pair: (-pair[2], pair[:2]))
    return Duplicates(ordered, limit, best, plain, few)


def number_clusters(clips: Clips, pairs: list[tuple[int, int, float]]) -> np.ndarray:
    """(clips,) a number per cluster: clips that are linked by pairs or by groups."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first: dict[str, int] = {}
    edges = [(a, b) for a, b, _ in pairs]
    for index in np.flatnonzero(clips.train & (clips.groups != "")).tolist():
        edges.append((first.setdefault(clips.groups[index], index), index))
    a, b = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    links = coo_matrix((np.ones(len(a)), (a, b)), shape=(len(clips.ids),) * 2)
    return connected_components(links, directed=False)[1]


def write_duplicates(clips: Clips, found: Duplicates, out: Path) -> Iterator[Finding]:
    """Write duplicates.csv, and groups.csv if there is something to group; the findings."""
    cluster, train, place = number_clusters(clips, found.pairs), clips.train, clips.place
    pairs = [(a, b, c, place[a] != place[b] and train[a] and train[b]) for a, b, c in found.pairs]
    rank = {number: rank for rank, number in enumerate(dict.fromkeys(cluster[a] for a, *_ in pairs), 1)}
    rows = []
    for a, b, cosine, straddles in pairs:
        row: list[int | str] = [rank[cluster[a]]]
        for column in (clips.ids, place, clips.names):
            row += [column[a], column[b]]
        same_file = clips.digests[a] and clips.digests[a] == clips.digests[b]
        rows.append([*row, cosine, "yes" if same_file else "", "yes" if straddles else ""])
    rows.sort(key=lambda row: row[0])  # stable: within a cluster the most similar first
    columns = [f"{name}_{side}" for name in ("clip", "fold", "label") for side in "ab"]
    write_csv(
        out / "duplicates.csv", ("cluster", *columns, "whitened_cosine", "same_file", "straddles"), rows
    )
    yield _find_straddling_groups(pairs, clips, cluster, out, found)
    inside = [row for row in pairs if train[row[0]] and train[row[1]]]
    if inside:
        _write_groups(clips, cluster, {cluster[a] for a, *_ in inside}, out / "groups.csv")
    sides = {
        "test": "the hold-out: its score is optimistic; remove those clips from training",
        "subm": "the submission: their labels are probably known: compare duplicates.csv to predictions",
    }
    for split, text in sides.items():
        across = sum(bool(train[a]) and clips.splits[b] == split for a, b, *_ in pairs)
        if across:
            yield warn(f"{across} pairs of near-duplicates in training and {text}")
    other = [(a, b) for a, b, *_ in inside if clips.names[a] != clips.names[b]]
    if other:
        first, second = (f"{clips.ids[index]} {clips.names[index]}" for index in other[0])
        yield warn(
            f"{len(other)} pairs of near-duplicates have different labels (first: {first}, {second}): "
            "listen, and fix the wrong one"
        )


def _find_straddling_groups(
    pairs: list, clips: Clips, cluster: np.ndarray, out: Path, found: Duplicates
) -> Finding:
    over = [row for row in pairs if row[3]]
    if not over:
        within = sum(bool(clips.train[a] and clips.train[b]) for a, b, *_ in pairs)
        hint = f"; {within} pairs lie within one fold: {out / 'groups.csv'} keeps them together"
        return report_ok(f"no near-duplicates straddle folds ({clips.fold_note}){hint if within else ''}")
    count = len({cluster[a] for a, *_ in over})
    a, b, cosine, _ = over[0]
    pairs_of = f"{len(over)} pair{'s' * (len(over) > 1)} of near-duplicates"
    if len(over) > 1:
        pairs_of += f" in {count} cluster{'s' * (count > 1)}"
    return warn(
        f"{pairs_of} straddle{'s' * (len(over) == 1)} folds (first: {clips.ids[a]}, {clips.ids[b]}, "
        f"{found.format_score(a, b, cosine)}), so scores are optimistic: add {out / 'groups.csv'} to the "
        "training csv as its column `group`, extract again, and train with --folds K, which replaces the "
        "data's own folds"
    )


def _write_groups(clips: Clips, cluster: np.ndarray, grouped: set, path: Path) -> None:
    """Write id and group of every training clip: its own group, or its cluster, named by the first clip."""
    names: dict[int, str] = {}
    rows = []
    for index in np.flatnonzero(clips.train).tolist():
        group = clips.groups[index]
        if cluster[index] in grouped:
            group = names.setdefault(cluster[index], group or f"like {clips.ids[index]}")
        rows.append((clips.ids[index], group))
    write_csv(path, ("id", "group"), rows)
