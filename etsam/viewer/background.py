"""A segmentation in a process of its own: a viewer that is closed, or dies, does not stop it."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from etsam.errors import ConfigError, EtsamError
from etsam.prediction.forecast import fraction_done
from etsam.prediction.record import OutputNames
from etsam.volume import Location, strip_suffix

# a line of `etsam.prediction.progress`
_LINE = re.compile(r": ([a-z][a-z0-9 -]*?) (\d+) of (\d+) slices(?:, (.+) left)?$", re.MULTILINE)
_ERROR = "etsam: error: "


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes
    ----------
    fraction
        Done, 0 to 1.
    text
        What is at work.
    left
        Time until all of it is done, as the log tells it; empty: unknown.
    """

    fraction: float
    text: str
    left: str = ""

    def __str__(self) -> str:
        return f"{self.text}, {self.left} left" if self.left else self.text


class BackgroundRun:
    """`etsam predict` of one tomogram in a process of its own, with its log in a file beside the outputs.

    Parameters
    ----------
    tomogram
        File.
    output_dir
        Where outputs go; made if need be.
    arguments
        Flags and settings of `etsam predict`.

    Attributes
    ----------
    names
        Of the outputs.
    log
        File of what the run says.
    """

    def __init__(self, tomogram: Location, output_dir: Path, arguments: Sequence[str] = ()) -> None:
        self.tomogram, self.output_dir, self.arguments = tomogram, Path(output_dir), list(arguments)
        infix = "_split_processing" if "tiles=split2x2" in self.arguments else ""
        self.names = OutputNames(self.output_dir, strip_suffix(tomogram), infix)
        self.log = self.names.view("_log.txt")
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False

    def start(self) -> None:
        """Start the process; raises `OutputError` if the folder cannot be written."""
        from etsam.volume.atomic import output_error

        command = [sys.executable, "-m", "etsam", "predict", str(self.tomogram), *self.arguments]
        command += ["--output-dir", str(self.output_dir)]
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"ETSAM_LOG_SECONDS": "0.5", "COLUMNS": "400"},
                    start_new_session=True,  # signals of the viewer's terminal are not for it
                )
        except OSError as error:
            raise output_error(error, self.log) from error

    @property
    def running(self) -> bool:
        """True while the process is at work."""
        return self._process is not None and self._process.poll() is None

    def progress(self) -> Progress:
        """Progress, by the last line of its log that tells of it."""
        found = _LINE.findall(self._told())
        if not found:
            return Progress(0.0, "starting")
        part, done, total, left = found[-1][0], int(found[-1][1]), int(found[-1][2]), found[-1][3]
        return Progress(fraction_done(part, done, total), f"{part}, slice {done} of {total}", left)

    def cancel(self, wait_seconds: float = 20.0) -> None:
        """Stop it; what it has not finished writing is removed by itself."""
        self._cancelled = True
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_seconds)
            return
        self._process.kill()
        self._process.wait()

    def result(self) -> OutputNames | None:
        """Names of the outputs of a run that has ended; None if it was cancelled.

        Raises
        ------
        EtsamError
            If it failed, with the line that it said.
        ConfigError
            If it has not ended.
        """
        if self._process is None or self.running:
            raise ConfigError("the run has not ended.")
        if self._cancelled:
            return None
        if self._process.returncode != 0:
            lines = [line for line in self._told().splitlines() if _ERROR in line]
            why = lines[-1].partition(_ERROR)[2] if lines else f"the process ended with {self._process.returncode}"
            raise EtsamError(why)
        return self.names

    def _told(self) -> str:
        try:
            return self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
