"""Batches in an order that follows from (seed, epoch), from any position on."""

from __future__ import annotations

import multiprocessing
import os
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from everstep.errors import EverstepError, Reason
from trainer_service.cgroups import memory_kills
from trainer_service.child.devices import CPU, Device
from trainer_service.child.memory_errors import is_lost_worker
from trainer_service.child.randomness import epoch_order, generator, reseed, weighted_order

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class BatchRequest:
    """One batch of an epoch: which examples, in which order."""

    epoch: int
    number: int
    #: Examples of the epoch before this batch.
    first: int
    indices: tuple[int, ...]


class EpochExamples(Dataset[Batch]):
    """Answers requests for batches; what it draws depends on the request alone.

    So a worker process draws what the training process would have drawn. A data set that offers
    `example(index, generator)` gets a generator for each example of an epoch; any other finds the
    global generators seeded for the batch; one that offers `batch(indices)` draws nothing.
    """

    def __init__(self, examples: Any, seed: int) -> None:
        self._examples = examples
        self._seed = seed

    def __getitem__(self, request: BatchRequest) -> Batch:
        if hasattr(self._examples, "batch"):
            batch: Batch = self._examples.batch(request.indices)
            return batch
        if hasattr(self._examples, "example"):
            return _stacked(
                self._examples.example(
                    index,
                    generator(self._seed, "example", request.epoch, index, request.first + place),
                )
                for place, index in enumerate(request.indices)
            )
        reseed(self._seed, "batch", request.epoch, request.number)
        return _stacked(self._examples[index] for index in request.indices)


def is_stream(examples: Any) -> bool:
    """Whether examples come one after another, and not by index."""
    if isinstance(examples, IterableDataset):
        return True
    return hasattr(examples, "__iter__") and not hasattr(examples, "__getitem__")


def keeps_its_state(examples: Any) -> bool:
    """Whether examples are a stream that says where it is, and can be put there."""
    return is_stream(examples) and hasattr(examples, "state_dict")


def batch_count(examples: int, batch_size: int) -> int:
    """Batches in an epoch; the last one may be shorter."""
    return -(-examples // batch_size)


class ExampleLoader:
    """The batches of a training, epoch by epoch, each from any position on.

    Worker processes last for all epochs, and end with this process, however it ends.

    Args:
        examples: A data set, or a stream.
        seed: The strategy's.
        batch_size: Of every batch but an epoch's last.
        workers: Processes that load; 0: this one.
        weighted: Whether examples are drawn by their `sample_weights`, with replacement.
        dtype: Of inputs and targets that are floating-point numbers.
        device: Where the batches are wanted.
    """

    def __init__(
        self,
        examples: Any,
        *,
        seed: int,
        batch_size: int,
        workers: int = 0,
        weighted: bool = False,
        dtype: torch.dtype = torch.float32,
        device: Device = CPU,
    ) -> None:
        self._examples = examples
        self._seed = seed
        self._batch_size = batch_size
        self._weighted = weighted
        self._dtype = dtype
        self._device = device
        #: What is asked for in the epoch that is under way; the loader reads it anew each time.
        self._requests: list[BatchRequest] = []
        self._loader: DataLoader[Batch] | None = None
        self._memory_kills = memory_kills()
        if not is_stream(examples):
            self._loader = self._open(workers)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, as (inputs, targets)."""
        seed, size = self._seed, self._batch_size
        if self._loader is None:
            stream = _stream_batches(self._examples, seed, epoch, size, start)
            return (_received(batch, self._dtype, self._device) for batch in stream)
        if self._weighted:
            order = weighted_order(self._examples.sample_weights, seed, epoch).tolist()
        else:
            order = epoch_order(len(self._examples), seed, epoch).tolist()
        self._requests[:] = [
            BatchRequest(epoch, first // size, first, tuple(order[first : first + size]))
            for first in range(start * size, len(order), size)
        ]
        return self._loaded(self._loader)

    def _loaded(self, loader: DataLoader[Batch]) -> Iterator[Batch]:
        """What the loader loads; a worker that the kernel ended for want of memory says nothing."""
        try:
            for batch in loader:
                yield _received(batch, self._dtype, self._device)
        except Exception as error:
            has_workers = loader.num_workers > 0
            if has_workers and is_lost_worker(error) and memory_kills() > self._memory_kills:
                raise MemoryError(f"a process that loads examples was killed: {error}") from error
            raise

    def _open(self, workers: int) -> DataLoader[Batch]:
        context = None
        if workers:
            context = multiprocessing.get_context("forkserver")
            # Workers are forked of a process that has imported this already.
            context.set_forkserver_preload([__name__])
        return DataLoader(
            EpochExamples(self._examples, self._seed),
            sampler=self._requests,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            # Of its own: iterating a DataLoader draws from its generator.
            generator=generator(self._seed, "loader"),
            multiprocessing_context=context,
            persistent_workers=workers > 0,
            worker_init_fn=partial(_end_with, os.getpid()),
        )


def evaluation_batches(
    examples: Any, batch_size: int, dtype: torch.dtype = torch.float32, device: Device = CPU
) -> Iterator[Batch]:
    """All examples in their own order; as `ExampleLoader`."""
    for first in range(0, len(examples), batch_size):
        last = min(first + batch_size, len(examples))
        batch = _stacked(examples[index] for index in range(first, last))
        yield _received(batch, dtype, device)


def _stream_batches(
    stream: Any, seed: int, epoch: int, batch_size: int, start: int
) -> Iterator[Batch]:
    """Batches of a stream, drawn only when they are asked for: its position is the training's.

    A stream that keeps its own state is there already; another one seeks.
    """
    if start == 0 and hasattr(stream, "set_epoch"):
        stream.set_epoch(epoch)
    if not hasattr(stream, "state_dict"):
        stream.seek(start * batch_size)
    examples = iter(stream)
    for first in range(start * batch_size, len(stream), batch_size):
        wanted = min(batch_size, len(stream) - first)
        reseed(seed, "batch", epoch, first // batch_size)
        drawn = list(islice(examples, wanted))
        if len(drawn) < wanted:
            raise EverstepError(
                Reason.TRAINING_FAILED,
                f"the stream of examples ended after {first + len(drawn)} of the {len(stream)} "
                "that its length promises for an epoch; correct its length",
            )
        yield _stacked(drawn)


def _stacked(examples: Any) -> Batch:
    pairs = list(examples)
    return (
        torch.stack([torch.as_tensor(inputs) for inputs, _ in pairs]),
        torch.stack([torch.as_tensor(targets) for _, targets in pairs]),
    )


def _received(batch: Batch, dtype: torch.dtype, device: Device) -> Batch:
    inputs, targets = (part.to(dtype) if part.is_floating_point() else part for part in batch)
    return device.received(inputs), device.received(targets)


def _end_with(process_id: int, _worker: int) -> None:
    """Ends this worker when the training process is gone, which is not its parent.

    The parent is the fork server, which lasts as long as its workers do.
    """
    try:
        watched = os.pidfd_open(process_id)
    except ProcessLookupError:
        os._exit(1)

    def wait() -> None:
        select.select([watched], [], [])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _as_it_is(batch: Any) -> Any:
    return batch
