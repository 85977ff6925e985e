"""Errors written for the person at the keyboard.

Every error a user can cause derives from :class:`EtsamError`. Its text is one line saying what was found, what is
allowed and what to do; entry points print that line and exit with status 1 (the traceback only with `debug=true`).
Anything else that reaches an entry point is a defect of the program and says so.
"""

from collections.abc import Iterable


class EtsamError(Exception):
    """Base of all errors meant for people; the message is complete on its own.

    Attributes
    ----------
    faults
        What is wrong, one by one, where it is more than one thing; entry points give each a line.
    """

    head: str = ""
    faults: tuple[str, ...] = ()

    @classmethod
    def of(cls, head: str, faults: "Iterable[object]", shown: int = 20) -> "EtsamError":
        """Error of several faults; its text has all in one line, that of a person (`explain`) each in a line.

        Parameters
        ----------
        head
            What all have in common.
        faults
            One by one.
        shown
            So many are told.
        """
        texts = [" ".join(str(fault).split()) for fault in faults]
        told = [*texts[:shown], *([f"and {len(texts) - shown} more"] if len(texts) > shown else [])]
        error = cls(f"{head}: {' | '.join(told)}")
        error.head, error.faults = head, tuple(told) if len(told) > 1 else ()
        return error


class InputError(EtsamError):
    """A tomogram, mask or list of tomograms that cannot be used as it is."""


class OutputError(EtsamError):
    """An output that exists already, cannot be written, or would collide with another."""


class CheckpointError(EtsamError):
    """Weights that are missing, unreadable, unsafe or of another architecture."""


class ConfigError(EtsamError):
    """A setting that is missing or contradicts another."""


class TrainingError(EtsamError):
    """A training run that cannot go on, such as one whose gradients are no numbers any more."""


class DownloadError(EtsamError):
    """A file that did not come, or came other than announced."""
