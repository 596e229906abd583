"""The memory slots as the training process sees them: states, laid out as safetensors files."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from checkpoint_store.safetensors_layout import GroupLayout, TensorSpec, parse_header, plan_group
from everstep.errors import EverstepError, Reason
from trainer_service.child.devices import CPU, Device
from trainer_service.child.page_table import populate
from trainer_service.child.pipe import SlotBlob, SlotContent
from trainer_service.shared_memory import allocate

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

#: Tensors by name, and their kind; one kind may have several groups, each with files of its own.
TensorGroup = tuple[str, Mapping[str, torch.Tensor]]
_Key = tuple[str, tuple[tuple[str, torch.dtype, torch.Size], ...]]


@dataclass(frozen=True)
class _WrittenGroup:
    """A group whose headers stand in a slot, and the views that its tensors are copied into."""

    #: Kind, and the names, types and shapes of the tensors.
    key: _Key
    #: Where it begins and ends in the slot.
    offset: int
    end: int
    blobs: tuple[SlotBlob, ...]
    #: By name, those that have bytes.
    targets: tuple[tuple[str, torch.Tensor], ...]


class SnapshotMemory:
    """Writes a state's tensors into slots, and reads them back as views.

    A slot is mapped once, with all its pages: the first snapshot costs what the later ones do.
    Headers and views are made once for the same names, types and shapes; after that a snapshot is
    a copy.

    Args:
        descriptors: Of the slots.
        device: Whose tensors are written.
    """

    def __init__(self, descriptors: Sequence[int], device: Device = CPU) -> None:
        self._descriptors = descriptors
        self._device = device
        self._mappings: dict[int, mmap.mmap] = {}
        self._written: dict[int, list[_WrittenGroup]] = {}

    def map(self, length: int) -> None:
        """Maps every slot, at least `length` bytes of each, page tables included."""
        for slot in range(len(self._descriptors)):
            self._mapped(slot, length)

    def write(self, slot: int, groups: Sequence[TensorGroup]) -> tuple[SlotBlob, ...]:
        """Copies tensors into a slot and says where they stand."""
        present = [(kind, tensors) for kind, tensors in groups if tensors]
        written = self._lay_out(slot, present)
        targets: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        for group, (_, tensors) in zip(written, present, strict=True):
            for name, target in group.targets:
                targets.append(target)
                sources.append(tensors[name].detach())
        self._device.copy_out(targets, sources)
        return tuple(blob for group in written for blob in group.blobs)

    def close(self) -> None:
        """After the last snapshot; what is in the slots stays there."""
        for mapping in self._mappings.values():
            self._device.unpin(mapping)

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

    def _lay_out(self, slot: int, groups: Sequence[TensorGroup]) -> list[_WrittenGroup]:
        """Writes the headers that do not stand in the slot yet."""
        before = self._written.pop(slot, [])
        written: list[_WrittenGroup] = []
        end = 0
        for number, (kind, tensors) in enumerate(groups):
            key = (kind, tuple((name, value.dtype, value.shape) for name, value in tensors.items()))
            group = before[number] if number < len(before) else None
            if group is None or group.key != key or group.offset != end:
                layout = plan_group(kind, _specs(tensors), end)
                if layout.total_bytes > self._length(slot):
                    self._mapped(slot, _with_room(layout.total_bytes))
                    return self._lay_out(slot, groups)
                group = self._write_headers(slot, key, end, layout)
            written.append(group)
            end = group.end
        self._written[slot] = written
        return written

    def _write_headers(
        self, slot: int, key: _Key, offset: int, layout: GroupLayout
    ) -> _WrittenGroup:
        memory = self._mappings[slot]
        targets = []
        for blob in layout.blobs:
            memory[blob.offset : blob.offset + len(blob.header)] = blob.header
            targets += [
                (placed.spec.name, _view(memory, placed.offset, placed.spec))
                for placed in blob.tensors
                if placed.length
            ]
        blobs = tuple(SlotBlob(blob.kind, blob.offset, blob.length) for blob in layout.blobs)
        return _WrittenGroup(key, offset, layout.total_bytes, blobs, tuple(targets))

    def _length(self, slot: int) -> int:
        mapping = self._mappings.get(slot)
        return 0 if mapping is None else len(mapping)

    def _mapped(self, slot: int, length: int) -> mmap.mmap:
        """The slot, at least `length` bytes of it; views of it keep an older mapping alive."""
        if self._length(slot) >= max(length, 1):
            return self._mappings[slot]
        descriptor, length = self._descriptors[slot], max(length, 1)
        allocate(descriptor, length)
        length = os.fstat(descriptor).st_size
        mapping = mmap.mmap(descriptor, length)
        try:
            populate(mapping, torch.get_num_threads())
        except OSError:
            # A write enters a page, too, and this one changes nothing.
            torch.frombuffer(mapping, dtype=torch.uint8)[:: mmap.PAGESIZE].add_(0)
        if slot in self._mappings:
            self._device.unpin(self._mappings[slot])
        self._device.pin(mapping)
        self._mappings[slot] = mapping
        self._written.pop(slot, None)
        return mapping


def total_bytes(groups: Sequence[TensorGroup]) -> int:
    """The length of a slot that holds such tensors; they need have no bytes themselves."""
    end = 0
    for kind, tensors in groups:
        end = plan_group(kind, _specs(tensors), end).total_bytes
    return end


def _specs(tensors: Mapping[str, torch.Tensor]) -> list[TensorSpec]:
    return [_spec(name, tensor) for name, tensor in tensors.items()]


def _with_room(length: int) -> int:
    """More than is needed now: what grew once, grows again."""
    return length + length // 16 + 1024 * 1024


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    word = DTYPE_WORDS.get(tensor.dtype)
    if word is None or tensor.layout is not torch.strided:
        raise EverstepError(
            Reason.TRAINING_FAILED,
            f"{name} is a {tensor.layout} tensor of {tensor.dtype}, which a checkpoint cannot keep",
        )
    return TensorSpec(name, word, tuple(tensor.shape))


def _view(memory: mmap.mmap, offset: int, spec: TensorSpec) -> torch.Tensor:
    dtype = _DTYPES[spec.dtype]
    count = 1
    for size in spec.shape:
        count *= size
    if count == 0:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(spec.shape)
