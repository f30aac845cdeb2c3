"""The default of --metric: the contest's own metric, which a cache may know."""

from __future__ import annotations

from collections.abc import Sequence

from earshot.core import cli
from earshot.core.config import TrainingFlags
from earshot.features.cache import Cache


def choose_default(caches: Sequence[Cache], argv: Sequence[str]) -> tuple[str, str | None]:
    """The metric, and the line to print about it; the usual one and None where the contest's is not known, or
    the arguments have a --metric.

    A contest's metric that does not fit these clips is not the user's fault: it is a warning, no error.

    Args:
        caches: of one competition; the first that knows its metric decides.
        argv: the command's arguments.
    """
    default_metric = TrainingFlags().metric
    contest_metric = next((cache.record["metric"] for cache in caches if cache.record.get("metric")), None)
    if contest_metric is None or cli.parse_early(list(argv), ["metric"])[0]["metric"] is not None:
        return default_metric, None
    from earshot.training import metrics  # imports numpy, which takes time

    if contest_metric not in metrics.list_for_task(caches[0].multilabel):
        labels = "several labels" if caches[0].multilabel else "one label each"
        return default_metric, (
            f"warning: the contest's metric {contest_metric} is not available for clips with {labels}: using "
            f"{default_metric} (--metric overrides)"
        )
    return contest_metric, f"metric: {contest_metric}, the contest's own (--metric overrides)"
