"""Batches in an order that follows from (seed, epoch), from any position on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from trainer_service.child.randomness import epoch_order, generator

Batch = tuple[torch.Tensor, torch.Tensor]


class EpochExamples(Dataset[Batch]):
    """Examples asked for as (epoch, index), so that a draw for one is the same in any worker.

    A data set that draws random numbers offers `example(index, generator)`; it gets a generator
    for that pair.
    """

    def __init__(self, examples: Any, seed: int) -> None:
        self._examples = examples
        self._seed = seed

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> Batch:
        if hasattr(self._examples, "example"):
            drawn = [
                self._examples.example(index, generator(self._seed, "example", epoch, index))
                for epoch, index in pairs
            ]
        else:
            drawn = [self._examples[index] for _, index in pairs]
        return (
            torch.stack([inputs for inputs, _ in drawn]),
            torch.stack([targets for _, targets in drawn]),
        )

    def __getitem__(self, pair: tuple[int, int]) -> Batch:
        return self.__getitems__([pair])


def batch_count(examples: int, batch_size: int) -> int:
    """Batches in an epoch; the last one may be shorter."""
    return -(-examples // batch_size)


def epoch_batches(
    examples: Any, *, seed: int, epoch: int, batch_size: int, start: int, workers: int
) -> Iterator[Batch]:
    """The batches of an epoch from number `start` on, as (inputs, targets)."""
    order = epoch_order(len(examples), seed, epoch).tolist()
    pairs = [
        [(epoch, index) for index in order[first : first + batch_size]]
        for first in range(start * batch_size, len(order), batch_size)
    ]
    loader: DataLoader[Batch] = DataLoader(
        EpochExamples(examples, seed),
        batch_sampler=pairs,
        num_workers=workers,
        collate_fn=_as_it_is,
        # Of its own: iterating a DataLoader draws from its generator.
        generator=generator(seed, "loader", epoch),
        multiprocessing_context="forkserver" if workers else None,
    )
    return iter(loader)


def evaluation_batches(examples: Any, batch_size: int) -> Iterator[Batch]:
    """All examples in their own order."""
    for first in range(0, len(examples), batch_size):
        drawn = [examples[index] for index in range(first, min(first + batch_size, len(examples)))]
        yield (
            torch.stack([inputs for inputs, _ in drawn]),
            torch.stack([targets for _, targets in drawn]),
        )


def _as_it_is(batch: Any) -> Any:
    return batch
