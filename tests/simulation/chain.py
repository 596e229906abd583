"""The state of a simulated training, and what comes out when nothing happens to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from typing import Any, Final

from checkpoint_store.checkpoints import state_digests
from checkpoint_store.digests import blob_digest, tensor_digest
from checkpoint_store.manifest import BlobEntry, TensorEntry
from checkpoint_store.safetensors_layout import TensorSpec, parse_header, plan_group
from trainer_service.child.pipe import SlotContent
from trainer_service.slots import MemorySlots

#: Steps of one epoch.
EPOCH_STEPS: Final = 4
#: Of the longest training.
MAX_STEPS: Final = 10 * EPOCH_STEPS
_CHAIN: Final = TensorSpec("chain", "U8", (32,))
#: Every checkpoint names these too: they are stored once.
_FROZEN: Final = TensorSpec("frozen", "U8", (32,))


class State:
    """All that a training is: the newest link of its chain, and what it has said of epochs."""

    def __init__(self, seed: int) -> None:
        self.step = 0
        self.link = sha256(f"seed {seed}".encode()).digest()
        self.frozen = sha256(f"frozen {seed}".encode()).digest()
        self.history: list[str] = []

    def advance(self) -> None:
        """One step."""
        self.step += 1
        self.link = sha256(self.link + self.step.to_bytes(8, "little")).digest()
        if self.step % EPOCH_STEPS == 0:
            self.history.append(self.link.hex()[:8])

    @property
    def loss(self) -> float:
        return int.from_bytes(self.link[:4], "little") / 2**32

    def small(self) -> dict[str, Any]:
        """What is no tensor."""
        return {"step": self.step, "history": list(self.history)}

    def to_bytes(self) -> bytes:
        """The safetensors files, as they stand in a slot."""
        content = bytearray(LAYOUT[-1].offset + LAYOUT[-1].length)
        for blob, value in zip(LAYOUT, (self.link, self.frozen), strict=True):
            content[blob.offset : blob.offset + len(blob.header)] = blob.header
            content[blob.offset + blob.length - 32 : blob.offset + blob.length] = value
        return bytes(content)

    @classmethod
    def of_slot(cls, slots: MemorySlots, content: SlotContent) -> State:
        """What a slot holds."""
        state = cls(0)
        state.step = int(content.state["step"])
        state.history = list(content.state["history"])
        with slots.view(content.slot) as memory:
            values = {
                blob.kind: bytes(memory[blob.offset + blob.length - 32 : blob.offset + blob.length])
                for blob in content.blobs
            }
        state.link, state.frozen = values["weights"], values["frozen"]
        return state


_CHAIN_LAYOUT: Final = plan_group("weights", [_CHAIN])
LAYOUT: Final = (
    *_CHAIN_LAYOUT.blobs,
    *plan_group("frozen", [_FROZEN], offset=_CHAIN_LAYOUT.total_bytes).blobs,
)


@cache
def losses(seed: int) -> Sequence[float]:
    """What each step comes to when nothing happens; of step 0 what there is before it."""
    state = State(seed)
    found = [state.loss]
    for _ in range(MAX_STEPS):
        state.advance()
        found.append(state.loss)
    return found


@cache
def wanted_digests(seed: int, epochs: int) -> Mapping[str, str]:
    """What a training ends with that nothing happens to."""
    state = State(seed)
    for _ in range(epochs * EPOCH_STEPS):
        state.advance()
    content = memoryview(state.to_bytes())
    entries = []
    for blob in LAYOUT:
        file = content[blob.offset : blob.offset + blob.length]
        tensors = tuple(
            TensorEntry(
                tensor.spec.name,
                tensor.spec.dtype,
                tensor.spec.shape,
                tensor.offset,
                tensor.length,
                tensor_digest(
                    tensor.spec.name,
                    tensor.spec.dtype,
                    tensor.spec.shape,
                    file[tensor.offset : tensor.offset + tensor.length],
                ),
            )
            for tensor in parse_header(file)
        )
        entries.append(BlobEntry(blob.kind, blob_digest(file), blob.length, tensors))
    return state_digests(entries, state.small())
