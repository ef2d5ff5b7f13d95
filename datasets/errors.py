"""The one error that means: what you gave us cannot be used, and here is how to mend it."""


class InputError(ValueError):
    """Bad input: the message says what was expected, what came, where, and what to do.

    It never contains note text, names or patient identifiers. The command line prints it as one
    line and exits with code 2; any other exception is a defect of chiasm.
    """


class UnreadableImageError(InputError):
    """An image file that exists but gives no trustworthy pixels; names the file and the reason."""
