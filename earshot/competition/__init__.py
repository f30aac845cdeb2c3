"""A competition's files as one row per clip: layouts, labels, tables, zips, the built-in sample."""
