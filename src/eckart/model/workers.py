"""Several pieces of work at a time, each on one thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``work`` on every item, in their order: as many at a time as torch has threads, each on a single one.

    Decompositions of single matrices run faster so than one after another with all threads, and a busy core delays
    only its own matrix. What comes out does not depend on how many run at a time. When an item fails, those that have not
    begun are given up.
    """
    waiting = [_pool(torch.get_num_threads()).submit(work, item) for item in items]
    try:
        for future in waiting:
            yield future.result()
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """The same threads for all calls: the C library and MKL keep memory for each thread there ever was."""
    return ThreadPoolExecutor(threads, "eckart", initializer=torch.set_num_threads, initargs=(1,))


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has the pool, but none of its threads
