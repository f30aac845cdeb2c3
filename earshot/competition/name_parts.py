import re


def labels_by_pattern(names, pattern):
    return [(m[1] if (m := re.search(pattern, n)) else "") for n in names]


def sources_in_names(names, labels):
    return None


def suggestions(names):
    return []
