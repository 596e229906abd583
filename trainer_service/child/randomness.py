"""All randomness from counters: nothing to save, nothing to replay.

Every draw follows from the strategy's seed and the place it is made at (epoch, batch). A resumed
training therefore draws what an uninterrupted one would have drawn, whatever was drawn before.
"""

from __future__ import annotations

import hashlib
import random
from typing import Final

import numpy as np
import torch

#: Changes whenever the same counters would give other numbers.
RANDOM_SCHEME: Final = "everstep-random-1"


def key(*parts: str | int) -> int:
    """63 bits that follow from the parts, BLAKE2 over their unambiguous text."""
    text = "\x1f".join((RANDOM_SCHEME, *(f"{type(part).__name__}:{part}" for part in parts)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """A generator of its own, seeded with `key`."""
    return torch.Generator().manual_seed(key(*parts))


def epoch_order(count: int, seed: int, epoch: int) -> torch.Tensor:
    """The order in which an epoch takes its examples: a permutation of 0..count-1, int64."""
    return torch.randperm(count, generator=generator(seed, "perm", epoch))


def weighted_order(weights: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """As many draws as there are weights, with replacement, each in proportion to its weight.

    Drawn by the cumulative sum, for torch.multinomial takes no more than 2**24 of them.
    """
    ends = weights.double().cumsum(0)
    draws = torch.rand(len(weights), generator=generator(seed, "perm", epoch), dtype=torch.float64)
    return torch.searchsorted(ends, draws * ends[-1], right=True).clamp_(max=len(weights) - 1)


#: Global generators beside the CPU's: of a device that this process trains on.
_of_devices: list[torch.Generator] = []


def seed_too(generator: torch.Generator) -> None:
    """Makes a device's global generator one that `reseed` seeds, in this process."""
    if not any(known is generator for known in _of_devices):
        _of_devices.append(generator)


def reseed(*parts: str | int) -> None:
    """Seeds the global generators of torch, numpy and Python from counters."""
    number = key(*parts)
    # torch.manual_seed would seed devices, too: it notes a traceback each time where there is none.
    torch.default_generator.manual_seed(number)
    for of_device in _of_devices:
        of_device.manual_seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    random.seed(number)


def prepare_threads(threads: int) -> None:
    """Sets the thread count, after vector math has been called once with a single thread.

    A fresh process can compute its first `exp` wrongly when several threads race
    (pytorch issue 188792).
    """
    torch.set_num_threads(1)
    sample = torch.linspace(0.1, 1.0, 64)
    for dtype in (torch.float32, torch.float64):
        values = sample.to(dtype)
        for function in (torch.exp, torch.log, torch.sqrt, torch.tanh, torch.sin, torch.erf):
            function(values)
    torch.set_num_threads(threads)
