"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """What is wrong, where, and what to do about it. The command line prints it without a traceback."""


class StoreUnavailable(UserError):
    """The store cannot be read or written now: locked, full, damaged, out of reach. The request itself may be right."""
