"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """What is wrong, where, and what to do about it. The command line prints it without a traceback."""
