"""The checks of doctor.py: `machine` for where it runs, `data` for a cache, and their parts."""
