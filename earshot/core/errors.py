"""The one exception that a user is meant to see."""


class UserError(Exception):
    """A mistake that the user can mend: one line saying what is wrong, where, and what to do.

    The scripts print it as `error: ...` without a traceback and leave with exit code 2.
    """
