"""The one exception a user is meant to see, and what others say in it."""


class UserError(ValueError):
    """A mistake in the input or the configuration; its text is the whole message.

    The text is one line: which file, row or field, what is wrong, and what to do. The command line
    prints it without a traceback; a traceback is for bugs.
    """


def first_line(error: Exception) -> str:
    """What an error of a library says, short enough for one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
