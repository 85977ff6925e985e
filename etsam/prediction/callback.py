"""Lightning's side of writing: each prediction goes to disk as soon as it is there, and what fails stops no other."""

import logging
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from etsam.errors import EtsamError, InputError
from etsam.prediction.batch import Missing
from etsam.prediction.kinds import NoTomogramError
from etsam.prediction.result import Prediction
from etsam.prediction.segmenter import is_out_of_memory
from etsam.prediction.writer import PredictionWriter, TakenError
from etsam.volume import locate
from etsam.volume.location import display_name

log = logging.getLogger(__name__)


class BatchWriter(BasePredictionWriter):
    """Writes each prediction, and keeps account of the files that got none.

    Parameters
    ----------
    writer
        Of the files of one prediction.
    single
        One file was named as such: what is wrong with it is an error, also that it is a mask or labels, and is told
        once, by `raise_failures`. Else such files are passed over.

    Attributes
    ----------
    failures
        Why tomograms were not segmented or written.
    missing
        The same, and files that were passed over, for the table at the end.
    left
        Tomograms that another process was at work on when their turn came, until `gather` looks again.
    complete
        Number of tomograms that were complete before their turn, or that another process has completed.
    written_by_all
        Number of tomograms that the processes of this run together have written, after `gather`.
    """

    def __init__(self, writer: PredictionWriter, single: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.writer, self.single = writer, single
        self.failures: list[str] = []
        self.missing: list[Missing] = []
        self.left: list[str] = []
        self.complete = self.written_by_all = 0

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Prediction | EtsamError,
        *args: Any,
    ) -> None:
        """Lightning's hook. A tomogram that was not segmented, or fails here, does not stop the others."""
        path = str(args[1]) if len(args) > 1 else ""  # args: batch indices, batch, ...
        try:
            if isinstance(prediction, TakenError) and not prediction.complete and not self.single:
                self.left.append(path)
                log.info("left %s", prediction)
            else:
                self._take(prediction, path)
        finally:
            self.writer.release()

    def _look_again(self) -> None:
        """Settle what has become of the tomograms that were left to other processes."""
        for path in self.left:
            found: EtsamError = InputError(f"{path}: another process began it and did not finish; run again for it.")
            try:
                self.writer.claim(locate(path), again=True)
            except EtsamError as error:
                found = error
            finally:
                self.writer.release()
            self._take(found, path)
        self.left = []

    def _take(self, prediction: Prediction | EtsamError, path: str) -> None:
        why = str(prediction)
        if isinstance(prediction, TakenError) and prediction.complete:
            self.complete += 1
            log.info("%s", why)
            return
        if isinstance(prediction, TakenError) and not self.single:
            self.missing.append(Missing.of(path, "left", why))
            return
        if isinstance(prediction, TakenError):
            why += "; wait for it, or choose another output_dir."
        if isinstance(prediction, NoTomogramError) and not self.single:
            self.missing.append(Missing.of(path, "passed over", why))
            log.info("passed over %s", why)
            return
        if isinstance(prediction, Prediction):
            assert prediction.volume.path is not None
            try:
                self.writer.write(prediction)
                return
            except (InputError, MemoryError, RuntimeError) as error:  # too many components, too little memory
                if not isinstance(error, InputError) and not is_out_of_memory(error):
                    raise
                why = f"{display_name(prediction.volume.path)}: {str(error) or 'out of memory'}"
        if not self.single:
            log.warning("not segmented: %s", why)
        self.failures.append(why)
        self.missing.append(Missing.of(path, "not usable", why))

    def gather(self, trainer: Trainer) -> None:
        """Tell every process what was done and what failed in the others; each has to call it, after its prediction.

        No hook of Lightning's will do: it calls none in a process that got no tomogram.
        """
        self._look_again()
        gathered: list[Any] = [(self.failures, self.missing, len(self.writer.written), self.complete)]
        if trainer.world_size > 1:
            mine, gathered = gathered[0], [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, mine)
        self.failures = [failure for failures, *_ in gathered for failure in failures]
        self.missing = [entry for _, missing, *_ in gathered for entry in missing]
        self.written_by_all, self.complete = (sum(counts[place] for counts in gathered) for place in (2, 3))

    def raise_failures(self) -> None:
        """To be called after a prediction, by one process for all.

        Raises
        ------
        InputError
            If a tomogram failed: why, of a single one; of several, how many, since each was told when it was met and in
            the table at the end.
        """
        if self.single and self.failures:
            raise InputError(self.failures[0])
        if self.failures:
            names = [entry.name for entry in self.missing if entry.kind == "not usable"]
            which = f"{names[0]} was" if len(names) == 1 else f"{len(names)} tomograms were"
            raise InputError(f"{which} not segmented; the table above says why.")
