"""The training that is saved: a small language model of one of three sizes, and its loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn
from torch.nn import functional

SEED: Final = 7
CONTEXT: Final = 128
HEAD_WIDTH: Final = 64


@dataclass(frozen=True)
class Size:
    """A model, and how it is saved; a parameter and Adam's two values of it are 12 bytes."""

    name: str
    width: int
    layers: int
    vocabulary: int
    #: Tokens of one step.
    tokens: int
    #: In one run; the first of them is cold.
    saves: int
    #: Of training between two saves, on an idle machine: longer than an upload takes.
    interval_seconds: float

    @property
    def state_bytes(self) -> int:
        """Of weights and optimizer, roughly, when all weights are trained."""
        return 12 * (12 * self.layers * self.width**2 + self.vocabulary * self.width)


SIZES: Final = {
    size.name: size
    for size in (
        Size("tiny", width=64, layers=2, vocabulary=512, tokens=32, saves=8, interval_seconds=0.3),
        Size("100MB", 256, 6, 14_000, tokens=64, saves=3, interval_seconds=2),
        # The shapes of GPT-2 small: 148 tensors of weights, 1.49 GB with Adam's.
        Size("1.5GB", 768, 12, 50_257, tokens=32, saves=2, interval_seconds=12),
    )
}
#: All weights are trained; or the last ones alone, so that nine tenths of the state are frozen.
JOBS: Final = ("all", "frozen")


class Block(nn.Module):
    """One layer of GPT-2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.attention_norm, self.forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.forward_in, self.forward_out = (
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        batch, length, width = values.shape
        parts = self.attention_in(self.attention_norm(values)).chunk(3, dim=-1)
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts
        )
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        values = values + self.attention_out(attended.transpose(1, 2).reshape(batch, length, width))
        hidden = functional.gelu(self.forward_in(self.forward_norm(values)))
        result: torch.Tensor = values + self.forward_out(hidden)
        return result


class LanguageModel(nn.Module):
    """GPT-2's shapes; the head is the embedding."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(CONTEXT, size.width)
        self.blocks = nn.ModuleList(Block(size.width) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        values = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            values = block(values)
        return functional.linear(self.norm(values), self.tokens.weight)


def build(size: Size, job: str) -> tuple[LanguageModel, torch.optim.Optimizer]:
    """The model and its optimizer, with the optimizer's state there as after a first step."""
    torch.manual_seed(SEED)
    model = LanguageModel(size)
    if job == "frozen":
        _freeze(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    train_step(model, optimizer, size, 0)
    return model, optimizer


def _freeze(model: nn.Module) -> None:
    """Leaves the last parameters trainable, as far as they make a tenth of the state's bytes."""
    parameters = list(model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = 0
    for parameter in reversed(parameters):
        grown = trained + parameter.numel()
        # A trained one is in the state three times: itself, and Adam's two values.
        fits = 3 * grown <= (total + 2 * grown) / 10
        trained = grown if fits else trained
        parameter.requires_grad_(fits)


def train_step(
    model: LanguageModel, optimizer: torch.optim.Optimizer, size: Size, step: int
) -> None:
    """One step on tokens that follow from its number."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(size.vocabulary, (1, size.tokens + 1), generator=generator)
    optimizer.zero_grad()
    logits = model(tokens[:, :-1])
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[0, 1:])
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights, and the optimizer's tensors."""
    tensors = [tensor.detach() for tensor in model.state_dict().values()]
    for values in optimizer.state.values():
        tensors += [value for value in values.values() if isinstance(value, torch.Tensor)]
    return tensors


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Of weights and optimizer."""
    return sum(tensor.nbytes for tensor in state_tensors(model, optimizer))


@dataclass
class Timings:
    """What the loop saw, in seconds."""

    #: Of all steps and saves.
    wall: float = 0.0
    steps: list[float] = field(default_factory=list)
    #: How long training waited for each save.
    stalls: list[float] = field(default_factory=list)
    #: When each save was begun, and when the loop ended, by time.time().
    saved_at: list[float] = field(default_factory=list)
    ended_at: float = 0.0


def run_loop(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    size: Size,
    steps_between: int,
    save: Callable[[int], None],
) -> Timings:
    """Trains, saving after each interval but the last: what is on its way then arrives in it."""
    timings = Timings()
    began = time.perf_counter()
    for step in range(1, steps_between * (size.saves + 1) + 1):
        step_began = time.perf_counter()
        train_step(model, optimizer, size, step)
        timings.steps.append(time.perf_counter() - step_began)
        if step % steps_between == 0 and step // steps_between <= size.saves:
            timings.saved_at.append(time.time())
            save_began = time.perf_counter()
            save(step)
            timings.stalls.append(time.perf_counter() - save_began)
    timings.wall = time.perf_counter() - began
    timings.ended_at = time.time()
    return timings


def copy_seconds(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """One memory copy of the whole state into memory that was touched before: the floor."""
    tensors = state_tensors(model, optimizer)
    targets = [torch.zeros_like(tensor) for tensor in tensors]
    torch._foreach_copy_(targets, tensors)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        torch._foreach_copy_(targets, tensors)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]
