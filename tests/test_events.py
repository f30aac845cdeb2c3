"""Events: consecutive windows in which a class is likely are one stretch of a recording."""

from __future__ import annotations

import numpy as np

from earshot.prediction.events import Event, list_events

CLASSES = ["dog", "rain"]


def find(rows: list[list[float]], start: list[float] | None = None, length: float = 2.0, **options):
    begin = np.arange(len(rows)) * length if start is None else np.array(start)
    return list_events(np.array(rows), begin, np.full(len(rows), length), CLASSES, **options)


def test_consecutive_windows_are_merged():
    found = find([[0.9, 0.0], [0.6, 0.0], [0.1, 0.8], [0.7, 0.2]])
    assert found == [Event("dog", 0, 4, 0.9), Event("rain", 4, 6, 0.8), Event("dog", 6, 8, 0.7)]


def test_overlapping_windows_are_merged_and_windows_apart_are_not():
    assert find([[1, 0], [1, 0]], [0, 1]) == [Event("dog", 0, 3, 1)]
    assert find([[1, 0], [1, 0]], [0, 5]) == [Event("dog", 0, 2, 1), Event("dog", 5, 7, 1)]


def test_equally_likely_events_go_by_length_then_by_time():
    found = find([[1, 0], [0, 1], [0, 1], [1, 0]])
    assert [(event.label, event.start) for event in found] == [("rain", 2), ("dog", 0), ("dog", 6)]


def test_what_is_no_event():
    assert find([[0.4, 0.4], [np.nan, np.nan]]) == []
    assert find([[1.0, 0.0]]) == []  # a single window is the clip itself
    assert find([[0.4, 0.0]] * 2, threshold=0.3) == [Event("dog", 0, 4, 0.4)]


def test_at_most_so_many_rows():
    assert [event.start for event in find([[1, 0], [0, 0], [1, 0], [0, 0]], most=1)] == [0]
