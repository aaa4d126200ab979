"""Errors that a user of the commands is meant to read.

Every message says what was expected, what was found, where, and what to do. The command line prints the message without a
traceback and leaves with the error's `exit_code`.
"""

from __future__ import annotations


class TfFashionError(Exception):
    """Base class of all errors raised on purpose by this library."""

    exit_code = 1


class UsageError(TfFashionError, ValueError):
    """An argument, option or name that cannot be used as given (exit code 2)."""

    exit_code = 2


class DataError(TfFashionError, ValueError):
    """A file or folder whose content is not what its format promises (exit code 1)."""

    exit_code = 1


class WeightsError(TfFashionError, ValueError):
    """Weights that are missing or belong to another architecture (exit code 1)."""

    exit_code = 1


class MissingExtraError(TfFashionError, ImportError):
    """An optional package is needed for what was asked (exit code 2)."""

    exit_code = 2

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package `{package}`. Install it with: pip install 'tf-fashion[{extra}]'")
