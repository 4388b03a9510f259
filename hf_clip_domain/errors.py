"""The one exception that means "the user can mend this"."""


class ClipDomainError(Exception):
    """A mistake in the input, with one sentence that says what arrived, what was expected and what to do.

    The command line prints the message alone, without a traceback, and exits with status 1.
    """
