"""The exceptions a user is meant to see."""

from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right. The message is one line: what was wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2. Where several things are wrong at
    once, the message has a line for each.
    """

    exit_code = 2


class TrainingFailure(UserError):
    """A step that ended but whose result has failed (``Artifact.failures``), raised with ``--strict``; exit code 3."""

    exit_code = 3


def collect_errors(*checks: Callable[[], object]) -> list[str]:
    """What checks refuse, in their order; a check refuses with a UserError."""
    faults = []
    for check in checks:
        try:
            check()
        except UserError as error:
            faults.append(str(error))
    return faults
