"""Predictions of runs: blends, thresholds, submissions, new audio."""
