"""One number for each step: two trainings part where their numbers do."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Final

import torch

#: Steps in one tensor: a full one never changes again, so it is stored once.
CHUNK_STEPS: Final = 8192
#: Elements of a parameter that a step's number takes in.
PROBE_ELEMENTS: Final = 1024


class StepTrace:
    """63 bits of BLAKE2 for each step that was taken.

    A step's number follows from its losses, the norm of its gradients, its learning rates and a
    part of one parameter after it: the parameters take turns. It costs microseconds, and a
    difference in any bit of the state shows in it a few steps later at most.
    """

    def __init__(self) -> None:
        self._chunks: list[torch.Tensor] = []
        self.steps = 0

    def add(
        self,
        losses: Sequence[float],
        norm: float,
        learning_rates: Sequence[float],
        parameters: Sequence[torch.Tensor],
    ) -> None:
        """Takes a step; `losses` are empty for one that was left out."""
        hasher = hashlib.blake2b(digest_size=8)
        values = (*losses, norm, *learning_rates)
        hasher.update(struct.pack(f"<{len(values) + 1}d", float(len(losses)), *values))
        hasher.update(_probe(parameters, self.steps))
        chunk, place = divmod(self.steps, CHUNK_STEPS)
        if chunk == len(self._chunks):
            self._chunks.append(torch.zeros(CHUNK_STEPS, dtype=torch.int64))
        self._chunks[chunk][place] = int.from_bytes(hasher.digest(), "little") >> 1
        self.steps += 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """The numbers by the first step of each chunk, int64."""
        return {
            f"{first:012d}": self._chunks[first // CHUNK_STEPS][: self.steps - first]
            for first in range(0, self.steps, CHUNK_STEPS)
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes over the numbers that `tensors` gave."""
        self._chunks, self.steps = [], 0
        for _, numbers in sorted(tensors.items()):
            chunk = torch.zeros(CHUNK_STEPS, dtype=torch.int64)
            chunk[: len(numbers)] = numbers
            self._chunks.append(chunk)
            self.steps += len(numbers)

    def number(self, step: int) -> int:
        """Of a step, counted from 0."""
        return int(self._chunks[step // CHUNK_STEPS][step % CHUNK_STEPS])


def _probe(parameters: Sequence[torch.Tensor], step: int) -> bytes:
    """A part of one parameter; another one for each step, in turns."""
    if not parameters:
        return b""
    turn, index = divmod(step, len(parameters))
    flat = parameters[index].detach().reshape(-1)
    if not flat.numel():
        return b""
    first = turn * PROBE_ELEMENTS % flat.numel()
    part = flat[first : first + PROBE_ELEMENTS].cpu().contiguous()
    return part.view(torch.uint8).numpy().tobytes()
