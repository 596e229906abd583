"""TrainingResumeContext: the whole state of a training between two optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from everstep.errors import EverstepError, Reason
from trainer_service.child.history import EpochRecord
from trainer_service.child.module_modes import PLAIN_MODES
from trainer_service.child.randomness import RANDOM_SCHEME
from trainer_service.child.small_state import decode, encode

STATE_FORMAT: Final = 1

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class TrainingResumeContext:
    """What a training goes on from, and what a checkpoint keeps.

    ModelTrainer makes one of its live state for a snapshot, and takes one to resume from; it
    copies what it takes.
    """

    #: The epoch that the next step belongs to, from 0; equals the number of epochs when all are
    #: done.
    start_epoch: int
    #: Parameters and buffers, as in `module.state_dict()`.
    model_weights: Tensors
    #: As in `optimizer.state_dict()`.
    optimizer_state: Mapping[str, Any]
    #: Optimizer steps done.
    step: int
    #: One record for each epoch that is done.
    training_history: tuple[EpochRecord, ...] = ()
    #: As in `scheduler.state_dict()`; None without a scheduler.
    scheduler_state: Mapping[str, Any] | None = None
    #: The weights of the best epoch so far.
    best_model_weights: Tensors | None = None
    #: The best value of the monitored metric so far (val_loss unless the strategy says otherwise).
    best_val_loss: float | None = None
    best_epoch: int | None = None
    #: The strategy, as plain dicts.
    original_request: Mapping[str, Any] = field(default_factory=dict)
    #: Batches of the epoch that are done.
    start_batch: int = 0
    #: The sum of the epoch's losses so far, weighted by examples, and the examples.
    epoch_loss_sum: float = 0.0
    epoch_examples: int = 0
    #: Early stopping: its best value, its count of epochs, whether and why it has stopped.
    early_stopping_best: float | None = None
    epochs_without_improvement: int = 0
    stopped_early: bool = False
    stop_reason: str = ""
    #: The moving average of the weights, as in `AveragedModel.state_dict()`; None without one.
    average_weights: Tensors | None = None
    #: As in `GradScaler.state_dict()`; None without one.
    scaler_state: Mapping[str, Any] | None = None
    #: See `module_modes`.
    module_modes: Mapping[str, Any] = field(default_factory=lambda: dict(PLAIN_MODES))
    #: Where registered generators are, by name.
    generators: Mapping[str, Any] = field(default_factory=dict)
    #: Where the examples are, when they are a stream that keeps its own position.
    stream_state: Any = None
    #: One number for each step, in chunks; see `StepTrace`.
    trace: Tensors = field(default_factory=dict)
    #: Steps left out, all of them and the last ones without a break.
    skipped: int = 0
    skipped_in_a_row: int = 0
    #: First and last step, counted from 1, of each part that a rollback left out.
    left_out: tuple[tuple[int, int], ...] = ()
    #: The optimizer's parameters by name, in its order.
    parameter_names: tuple[str, ...] = ()
    #: Overrides that are part of this state already, as plain dicts.
    applied_overrides: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Every tensor by kind and name; an optimizer's are named PARAMETER/KEY."""
        kinds = {"weights": dict(self.model_weights), "optimizer": self._optimizer_tensors()}
        if self.best_model_weights is not None:
            kinds["best_weights"] = dict(self.best_model_weights)
        if self.average_weights is not None:
            kinds["average_weights"] = dict(self.average_weights)
        if self.trace:
            kinds["trace"] = dict(self.trace)
        return kinds

    def tensor_groups(self) -> list[tuple[str, dict[str, torch.Tensor]]]:
        """Every tensor, as files are made of them: by kind, and frozen weights apart.

        Frozen ones never change, so their files are stored once. What grows stands last.
        """
        frozen = set(self.module_modes["frozen"])
        groups: list[tuple[str, dict[str, torch.Tensor]]] = []
        for kind, tensors in self.tensors().items():
            if kind in ("optimizer", "trace"):
                groups.append((kind, tensors))
                continue
            still = {n: t for n, t in tensors.items() if n.removeprefix("module.") in frozen}
            groups.append((kind, {n: t for n, t in tensors.items() if n not in still}))
            groups.append((kind, still))
        return groups

    def small_state(self) -> dict[str, Any]:
        """Everything that is no tensor, for JSON; no wall-clock in it."""
        return {
            "format": STATE_FORMAT,
            "random_scheme": RANDOM_SCHEME,
            "epoch": self.start_epoch,
            "batch": self.start_batch,
            "step": self.step,
            "epoch_loss_sum": self.epoch_loss_sum,
            "epoch_examples": self.epoch_examples,
            "history": [record.to_json() for record in self.training_history],
            "best": {"value": self.best_val_loss, "epoch": self.best_epoch},
            "early_stopping": {
                "best": self.early_stopping_best,
                "epochs_without_improvement": self.epochs_without_improvement,
                "stopped": self.stopped_early,
                "reason": self.stop_reason,
            },
            "parameter_names": list(self.parameter_names),
            "optimizer": {
                "param_groups": encode(self.optimizer_state["param_groups"]),
                "values": encode(self._optimizer_values()),
            },
            "scheduler": encode(self.scheduler_state),
            "scaler": encode(self.scaler_state),
            "modes": dict(self.module_modes),
            "generators": dict(self.generators),
            "stream": encode(self.stream_state),
            "skipped": {
                "steps": self.skipped,
                "in_a_row": self.skipped_in_a_row,
                "left_out": [list(part) for part in self.left_out],
            },
            "overrides": dict(self.applied_overrides),
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], tensors: Mapping[str, Tensors], request: Mapping[str, Any]
    ) -> TrainingResumeContext:
        """The context that `small_state` and `tensors` describe.

        Raises:
            EverstepError: ENVIRONMENT_MISMATCH for a state of another format or random scheme.
        """
        for name, wanted in (("format", STATE_FORMAT), ("random_scheme", RANDOM_SCHEME)):
            if state.get(name) != wanted:
                raise EverstepError(
                    Reason.ENVIRONMENT_MISMATCH,
                    f"the checkpoint's {name} is {state.get(name)!r}, this trainer's {wanted!r}; "
                    "resume with the version of Everstep that made it",
                    metadata={"differences": name},
                )
        stopping, skipped = state["early_stopping"], state["skipped"]
        return cls(
            start_epoch=state["epoch"],
            start_batch=state["batch"],
            step=state["step"],
            epoch_loss_sum=state["epoch_loss_sum"],
            epoch_examples=state["epoch_examples"],
            model_weights=tensors["weights"],
            optimizer_state=_optimizer_state(state, tensors.get("optimizer", {})),
            training_history=tuple(EpochRecord(**record) for record in state["history"]),
            scheduler_state=decode(state["scheduler"]),
            best_model_weights=tensors.get("best_weights"),
            best_val_loss=state["best"]["value"],
            best_epoch=state["best"]["epoch"],
            original_request=request,
            early_stopping_best=stopping["best"],
            epochs_without_improvement=stopping["epochs_without_improvement"],
            stopped_early=stopping["stopped"],
            stop_reason=stopping["reason"],
            average_weights=tensors.get("average_weights"),
            scaler_state=decode(state["scaler"]),
            module_modes=state["modes"],
            generators=state["generators"],
            stream_state=decode(state["stream"]),
            trace=tensors.get("trace", {}),
            skipped=skipped["steps"],
            skipped_in_a_row=skipped["in_a_row"],
            left_out=tuple((first, last) for first, last in skipped["left_out"]),
            parameter_names=tuple(state["parameter_names"]),
            applied_overrides=state["overrides"],
        )

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{self.parameter_names[index]}/{name}": value
            for index, values in self.optimizer_state["state"].items()
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }

    def _optimizer_values(self) -> dict[int, dict[str, Any]]:
        """Values of the optimizer's state that are no tensors, by parameter index."""
        return {
            index: {
                name: value for name, value in values.items() if not isinstance(value, torch.Tensor)
            }
            for index, values in self.optimizer_state["state"].items()
        }


def _optimizer_state(state: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    indices = {name: index for index, name in enumerate(state["parameter_names"])}
    by_index: dict[int, dict[str, Any]] = decode(state["optimizer"]["values"])
    for full_name, tensor in tensors.items():
        parameter, _, name = full_name.rpartition("/")
        by_index[indices[parameter]][name] = tensor
    return {
        "state": by_index,
        "param_groups": decode(state["optimizer"]["param_groups"]),
    }
