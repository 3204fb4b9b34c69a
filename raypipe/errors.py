"""The one exception a user is meant to see."""


class UserError(ValueError):
    """A mistake in the input or the configuration; its text is the whole message.

    The text is one line: which file, row or field, what is wrong, and what to do. The command line
    prints it without a traceback; a traceback is for bugs.
    """
