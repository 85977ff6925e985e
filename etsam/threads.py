"""Work on single slices spread over threads, in order and with few slices in memory.

Threads, not processes: what takes time here (thinning, distance transforms, smoothing) lets Python go on meanwhile, and
nothing has to be copied or started. An error in a thread is raised where its result is asked for; after Ctrl-C only the
slices at work are finished, which takes a fraction of a second.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from etsam.errors import ConfigError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MOST_BY_DEFAULT = 8
"""More find little to do, because one thread reads all slices, and each has some slices in memory."""


def worker_count(workers: int | None = None) -> int:
    """Number of threads to use.

    Parameters
    ----------
    workers
        As asked for, at least 1; None: as many as there are cores that this process may use, at most 8.

    Raises
    ------
    ConfigError
        If it is anything else.
    """
    if workers is None:
        # a cluster's queue or a container often leaves a program less than the machine has; macOS does not tell
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, MOST_BY_DEFAULT)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers={workers!r}; allowed are whole numbers of at least 1, or null for all cores")
    return workers


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int | None = None
) -> Iterator[_Result]:
    """`map(function, items)` by threads: results in the order of the items, at most `workers` + 1 of them waiting.

    Items are taken in the calling thread, so they may be read from something that only one thread may use. An error,
    also one of taking an item, is raised in the place of that item's result.

    Parameters
    ----------
    function
        Depends on its item alone, and does most of its work without Python's lock.
    items
        Taken one by one, no more than `workers` + 1 ahead.
    workers
        As of `worker_count`. With 1, everything happens in the calling thread.
    """
    count = worker_count(workers)
    if count == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="slices") as pool:
        try:
            for future in _submitted(pool, function, items):
                waiting.append(future)
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also if the caller stops: what has not begun is not begun any more
            for future in waiting:
                future.cancel()


def _submitted(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> "Iterator[Future[_Result]]":
    source = iter(items)
    while True:
        try:
            item = next(source)
        except StopIteration:
            return
        except Exception as error:  # kept until those before have been handed out
            failed: Future[_Result] = Future()
            failed.set_exception(error)
            yield failed
            return
        yield pool.submit(function, item)
