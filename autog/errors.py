"""The two ways in which autog says no: to a person who can mend the input, and to a person who cannot."""


class AutogError(Exception):
    """Something failed; the message is one sentence: what is wrong, where, what to do. Exit code 1."""

    exit_code = 1


class UsageError(AutogError):
    """The input is wrong (a recipe, a flag, a file) and nothing was changed. Exit code 2."""

    exit_code = 2
