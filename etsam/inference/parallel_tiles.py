"""Several tiles at the same time on a CPU, each tracked by one core.

The layers of a small network are too small to be shared among cores: nano is as fast on one core as on two (measured).
Tiles know nothing of each other, and torch leaves Python's lock while it calculates, so that threads suffice.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

_Item = TypeVar("_Item")


def run_tiles_in_parallel(runs: Sequence[Iterator[_Item]], workers: int) -> Generator[list[_Item], None, None]:
    """Items of all runs side by side, as `zip(*runs, strict=True)`, computed by so many threads of one core each.

    Threads get what torch knows of the calling one: no gradients, inference mode, autocast.

    Parameters
    ----------
    runs
        Iterators that do not depend on each other.
    workers
        1: in the calling thread, with all cores that torch has.

    Raises
    ------
    ValueError
        If one run ends before another.
    """
    if min(workers, len(runs)) < 2:
        yield from map(list, zip(*runs, strict=True))
        return
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    lower, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def advanced(run: Iterator[_Item]) -> list[_Item]:
        modes = torch.inference_mode(inference), torch.set_grad_enabled(gradients)
        with modes[0], modes[1], torch.autocast("cpu", dtype, enabled=lower):
            return list(islice(run, 1))

    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that are new take it over
    try:
        with ThreadPoolExecutor(min(workers, len(runs)), thread_name_prefix="tiles") as pool:
            while found := [item for items in pool.map(advanced, runs) for item in items]:
                if len(found) < len(runs):
                    raise ValueError("one of the runs ended before the others")
                yield found
    finally:
        torch.set_num_threads(cores)
