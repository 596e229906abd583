"""Trains a scenario and keeps what a checkpoint would keep, after every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from checkpoint_store.digests import canonical_json, parse_canonical_json, tensor_digest
from tests.training.mutations import NOTHING, Mutation
from tests.training.scenarios import Scenario
from trainer_service.child.batches import keeps_its_state
from trainer_service.child.devices import CPU, Device
from trainer_service.child.events import EpochCompleted, Event, Position
from trainer_service.child.model_trainer import ModelTrainer
from trainer_service.child.model_trainer_config import TrainingOutcome
from trainer_service.child.resume_context import TrainingResumeContext

TensorsByKind = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Snapshot:
    """A context as a checkpoint keeps it: JSON, and copies of the tensors."""

    trigger: str
    small_state: bytes
    tensors: TensorsByKind = field(repr=False)

    @classmethod
    def of(cls, trigger: str, context: TrainingResumeContext) -> Snapshot:
        copies = {
            kind: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for kind, tensors in context.tensors().items()
        }
        return cls(trigger, canonical_json(context.small_state()), copies)

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = parse_canonical_json(self.small_state)
        return state

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def learning_rate(self) -> float:
        (group,) = self.state["optimizer"]["param_groups"]
        return float(group["lr"])

    def context(self) -> TrainingResumeContext:
        """What a new process would build of it."""
        return TrainingResumeContext.from_state(self.state, self.tensors, {"name": "of the test"})

    def content(self) -> dict[str, Any]:
        """Everything, with tensors as digests: two are equal when every byte is."""
        tensors = {
            kind: {name: digest(tensor) for name, tensor in named.items()}
            for kind, named in self.tensors.items()
        }
        return {**self.state, "tensors": tensors}


@dataclass(frozen=True)
class Run:
    """A training that has ended."""

    outcome: TrainingOutcome
    trainer: ModelTrainer = field(repr=False)
    #: One for each step (an epoch's last one after its evaluation), the final one at the end.
    snapshots: tuple[Snapshot, ...] = field(repr=False)
    events: tuple[tuple[Position, Event], ...] = field(repr=False)

    @property
    def final(self) -> Snapshot:
        assert self.snapshots[-1].trigger == "FINAL"
        return self.snapshots[-1]

    @property
    def epochs(self) -> list[int]:
        """Of the epochs that were reported."""
        return [event.epoch for _, event in self.events if isinstance(event, EpochCompleted)]

    @property
    def learning_rates(self) -> dict[int, float]:
        """After each step."""
        return {snapshot.step: snapshot.learning_rate for snapshot in self.snapshots}

    def at_epoch(self, epoch: int) -> Snapshot:
        """Before an epoch's first step."""
        return next(
            snapshot
            for snapshot in self.snapshots
            if snapshot.state["epoch"] == epoch and snapshot.state["batch"] == 0
        )

    def at_step(self, step: int) -> Snapshot:
        return next(snapshot for snapshot in self.snapshots if snapshot.step == step)


def digest(tensor: torch.Tensor) -> str:
    """Of dtype, shape and bytes."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensor_digest("", str(tensor.dtype), tuple(tensor.shape), data)


@dataclass(frozen=True)
class Laboratory:
    """Trains scenarios, with one thing wrong on purpose or none."""

    mutation: Mutation = NOTHING
    device: Device = CPU

    def train(
        self, scenario: Scenario, *, initialisation: int = 1, examples: Any = None, **changes: Any
    ) -> Run:
        """From the beginning to the end."""
        return self._run(scenario, None, initialisation, examples, changes)

    def resume(
        self,
        scenario: Scenario,
        context: TrainingResumeContext,
        *,
        examples: Any = None,
        **changes: Any,
    ) -> Run:
        """From a context to the end, in a model that was initialised otherwise."""
        return self._run(scenario, context, 1000, examples, changes)

    def _run(
        self,
        scenario: Scenario,
        context: TrainingResumeContext | None,
        initialisation: int,
        examples: Any,
        changes: dict[str, Any],
    ) -> Run:
        snapshots: list[Snapshot] = changes.pop("kept", [])
        token = changes.pop("token", None)
        events: list[tuple[Position, Event]] = []

        def keep(trigger: str, capture: Callable[[], TrainingResumeContext]) -> None:
            snapshots.append(Snapshot.of(trigger, capture()))

        def note(position: Position, event: Event) -> None:
            events.append((position, event))

        with pytest.MonkeyPatch.context() as patch:
            for name, replacement in self.mutation.world.items():
                patch.setattr(name, replacement)
            if context is not None:
                fresh = _trainer(scenario, self.device, initialisation, changes, None).capture()
                context = self.mutation.context(context, fresh)
            train, validation = scenario.data()
            train = examples if examples is not None else train
            # Draws that a process may have made before; they must not matter.
            torch.manual_seed(initialisation * 7919)
            trainer = _trainer(
                scenario,
                self.device,
                initialisation,
                changes,
                context,
                stream=train if keeps_its_state(train) else None,
                progress_callback=note,
                cancellation_token=token,
                checkpoint_callback=keep,
            )
            self.mutation.trainer(trainer)
            torch.manual_seed(initialisation * 104729)
            outcome = trainer.train(train, validation)
        return Run(outcome, trainer, tuple(snapshots), tuple(events))


def _trainer(
    scenario: Scenario,
    device: Device,
    initialisation: int,
    changes: dict[str, Any],
    context: TrainingResumeContext | None,
    **callbacks: Any,
) -> ModelTrainer:
    model = scenario.model(initialisation).to(device.place)
    optimizer = scenario.optimizer(model.parameters())
    scheduler = None if scenario.scheduler is None else scenario.scheduler(optimizer)
    return ModelTrainer(
        model,
        scenario.loss(),
        optimizer,
        scheduler,
        scenario.config(**changes),
        resume_context=context,
        device=device,
        **callbacks,
    )
