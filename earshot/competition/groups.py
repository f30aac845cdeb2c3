def from_columns(frame, labels, used):
    return None, []


def from_pattern(names, pattern):
    import re

    return [(m[1] if (m := re.search(pattern, n)) else "") for n in names]
