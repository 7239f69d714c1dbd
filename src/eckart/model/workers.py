"""Several pieces of work at a time, each on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """``work`` on every item, in their order: as many at a time as torch has threads, each on a single one.

    Decompositions of single matrices run faster so than one after another with all threads, and a busy core delays
    only its own matrix. What comes out does not depend on how many run at a time.
    """
    threads = torch.get_num_threads()

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)
        return work(item)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="eckart")
    try:
        yield from pool.map(alone, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
