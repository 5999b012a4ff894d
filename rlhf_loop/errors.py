"""The one exception that means: the user can mend this; and values as errors show them."""


class UserError(ValueError):
    """What is wrong, where, and what to do about it. The command line prints it without a traceback."""


class StoreUnavailable(UserError):
    """The store cannot be read or written now: locked, full, damaged, out of reach. The request itself may be right."""


def printable(text: str) -> str:
    """A text of somebody else's on one line, with escapes for what would steer a terminal."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def shortened(text: str, most: int = 200) -> str:
    """The beginning of a text, `most` characters at most: what somebody gave may be a whole document."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
