"""The one exception a user is meant to see."""


class UserError(Exception):
    """Something the user can put right. The message is one line: what was wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """
