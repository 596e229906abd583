"""Snapshots: a training's state in a memory slot, in the layout of safetensors files."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Mapping
from typing import Final

import torch

from checkpoint_store.safetensors_layout import TensorSpec, parse_header, plan_state
from everstep.errors import EverstepError, Reason
from trainer_service.child.pipe import SlotBlob, SlotContent

#: The words of safetensors for torch's dtypes.
DTYPE_WORDS: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES: Final = {word: dtype for dtype, word in DTYPE_WORDS.items()}

TensorsByKind = Mapping[str, Mapping[str, torch.Tensor]]


class SnapshotSlots:
    """The two memory slots, as the training process sees them.

    A slot may be written when its snapshot is released and it is not the newest complete one: the
    trainer goes on from that one when this process dies. The slot resumed from counts as
    unreleased until the trainer says otherwise.
    """

    def __init__(self, descriptors: tuple[int, ...]) -> None:
        self._descriptors = descriptors
        self._changed = threading.Condition()
        self._unreleased: set[int] = set()
        self._newest: int | None = None

    def resumed_from(self, slot: int) -> None:
        """Protects the slot that this process goes on from."""
        with self._changed:
            self._newest = slot
            self._unreleased.add(slot)

    def released(self, slot: int) -> None:
        """The trainer no longer reads a slot."""
        with self._changed:
            self._unreleased.discard(slot)
            self._changed.notify_all()

    def free_slot(self, wait: bool) -> int | None:
        """A slot that may be written; None when there is none and nobody waits for it."""
        with self._changed:
            while True:
                for slot in range(len(self._descriptors)):
                    if slot != self._newest and slot not in self._unreleased:
                        return slot
                if not wait:
                    return None
                self._changed.wait()

    def wait_until_released(self) -> None:
        """Waits until the trainer reads no slot any more."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unreleased)

    def write(self, slot: int, kinds: TensorsByKind) -> tuple[SlotBlob, ...]:
        """Copies tensors into a slot and says where they stand; the slot is then the newest."""
        layout = plan_state(
            {
                kind: [
                    TensorSpec(name, _dtype_word(name, tensor), tuple(tensor.shape))
                    for name, tensor in tensors.items()
                ]
                for kind, tensors in kinds.items()
                if tensors
            }
        )
        memory = self._mapped(slot, layout.total_bytes)
        targets, sources = [], []
        for blob in layout.blobs:
            memory[blob.offset : blob.offset + len(blob.header)] = blob.header
            for placed in blob.tensors:
                source = kinds[blob.kind][placed.spec.name].detach()
                if source.numel():
                    targets.append(_view(memory, placed.offset, placed.spec))
                    sources.append(source)
        torch._foreach_copy_(targets, sources)
        with self._changed:
            self._newest = slot
            self._unreleased.add(slot)
        return tuple(SlotBlob(blob.kind, blob.offset, blob.length) for blob in layout.blobs)

    def read(self, content: SlotContent) -> dict[str, dict[str, torch.Tensor]]:
        """A snapshot's tensors by kind and name, as views of the slot."""
        size = os.fstat(self._descriptors[content.slot]).st_size
        memory = self._mapped(content.slot, size)
        kinds: dict[str, dict[str, torch.Tensor]] = {}
        for blob in content.blobs:
            tensors = kinds.setdefault(blob.kind, {})
            with memoryview(memory)[blob.offset : blob.offset + blob.length] as file:
                header = parse_header(file)
            for placed in header:
                tensors[placed.spec.name] = _view(memory, blob.offset + placed.offset, placed.spec)
        return kinds

    def _mapped(self, slot: int, size: int) -> mmap.mmap:
        """The slot, at least `size` bytes of it; the views of it keep the mapping alive."""
        descriptor = self._descriptors[slot]
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, max(size, 1))


def _dtype_word(name: str, tensor: torch.Tensor) -> str:
    word = DTYPE_WORDS.get(tensor.dtype)
    if word is None or tensor.layout is not torch.strided:
        raise EverstepError(
            Reason.TRAINING_FAILED,
            f"{name} is a {tensor.layout} tensor of {tensor.dtype}, which a checkpoint cannot keep",
        )
    return word


def _view(memory: mmap.mmap, offset: int, spec: TensorSpec) -> torch.Tensor:
    dtype = _DTYPES[spec.dtype]
    count = 1
    for size in spec.shape:
        count *= size
    if count == 0:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(spec.shape)
