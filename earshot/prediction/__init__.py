"""From runs to predictions: blends, thresholds, submissions, new audio."""
