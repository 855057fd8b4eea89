"""Errors for the person: each says what was found, where, what was expected and what to do.

The command line prints the message without a traceback and leaves with ``exit_code``.
"""

import contextlib
from collections.abc import Iterator


class PlumecastError(Exception):
    """A failure that the command line reports in a few lines. Exit code 1 unless a subclass says otherwise."""

    exit_code = 1


class InputError(PlumecastError):
    """Wrong input or configuration (exit code 2)."""

    exit_code = 2


class NotReadyError(PlumecastError):
    """The data asked for are not there yet; trying later may succeed (exit code 3)."""

    exit_code = 3


class GateError(PlumecastError):
    """A run finished but failed its own quality gate (exit code 4)."""

    exit_code = 4


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Values of a store are read: whatever goes wrong becomes an InputError that names `what`."""
    try:
        yield
    except (PlumecastError, MemoryError):
        raise
    except Exception as error:  # readers raise what they like
        raise InputError(
            f"{what} cannot be read: {type(error).__name__}: {error}\nplumecast data check STORE names what is damaged"
        ) from error
