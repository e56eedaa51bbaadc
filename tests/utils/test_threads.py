"""Threads that work ahead: in order, in batches, and no further ahead than they may."""

from __future__ import annotations

from itertools import count

import pytest

from trainers.hegraph.utils.threads import AHEAD, in_batches


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_and_results_are_in_order_and_the_last_batch_may_be_smaller(threads):
    batches = list(in_batches(lambda number: number * number, range(45), 20, threads))
    assert [batch for batch, _ in batches] == [list(range(20)), list(range(20, 40)), list(range(40, 45))]
    assert [result for _, results in batches for result in results] == [number**2 for number in range(45)]


def test_items_are_taken_only_as_they_are_needed():
    numbers = count()
    batches = in_batches(str, numbers, 4, 2)
    for number in range(1, 6):
        next(batches)
        assert next(numbers) <= 4 * (number + AHEAD) + number
    batches.close()


def test_what_the_work_raises_is_raised_with_its_batch():
    batches = in_batches(lambda number: 1 // (5 - number), range(8), 4, 2)
    assert next(batches)[0] == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        next(batches)
