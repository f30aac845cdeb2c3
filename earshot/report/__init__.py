"""Pictures and a page of a run, and the comparison of several: `python -m earshot.report RUN ...`."""
