"""A training as it happens: a bar, the losses, and a line for whatever is worth keeping."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from everstep.cli.console import duration, size, words
from everstep.control.v1.operations_pb2 import OperationEvent, OperationState
from everstep.training.v1 import progress_pb2
from everstep.training.v1.checkpoint_pb2 import CheckpointTrigger
from everstep.training.v1.progress_pb2 import TrainingProgress

#: Columns that a terminal has for the work at risk beside everything else.
_WIDE = 120
_STATE_COLOURS = {"completed": "green", "failed": "red", "cancelled": "yellow"}


class _EtaColumn(ProgressColumn):
    """The time that is left, as the training reckons it."""

    def render(self, task: Task) -> Text:
        eta = task.fields.get("eta")
        return Text(f"{duration(eta)} left" if eta else "", style="cyan")


class TrainingDisplay:
    """Shows the events of one operation; a context manager.

    Args:
        console: Where to.
        plain: Lines only, for what is no terminal.
    """

    def __init__(self, console: Console, plain: bool) -> None:
        self._console = console
        self._plain = plain
        self._phase = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("[bold]{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[metrics]}"),
            _EtaColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("waiting", total=1.0, metrics="", eta=None)

    def __enter__(self) -> TrainingDisplay:
        if not self._plain:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def message(self, text: str) -> None:
        """A line above the bar; rich's markup."""
        self._console.print(text, soft_wrap=True)

    def show(self, event: OperationEvent) -> None:
        """Shows one event."""
        if event.HasField("progress"):
            self._show_progress(event.progress)
        elif event.HasField("state_changed"):
            self._show_state(event)
        elif event.HasField("note"):
            self.message(f"[yellow]![/] {escape(event.note.message)}")

    def _show_state(self, event: OperationEvent) -> None:
        changed = event.state_changed
        state = words(OperationState.Name(changed.to), "OPERATION_STATE_")
        if changed.reason == "CREATED":
            return
        colour = _STATE_COLOURS.get(state, "blue")
        text = f": {changed.message}" if changed.message else ""
        attempt = f" [dim](attempt {changed.attempt})[/]" if changed.attempt else ""
        self.message(f"[{colour}]●[/] {state}{attempt}{escape(text)}")

    def _show_progress(self, progress: TrainingProgress) -> None:
        match progress.WhichOneof("event"):
            case "phase_changed":
                self._phase = words(progress_pb2.Phase.Name(progress.phase_changed.phase), "PHASE_")
            case "epoch_completed":
                self._show_epoch(progress)
            case "checkpoint_committed":
                self._show_checkpoint(progress.checkpoint_committed)
            case "checkpoint_delayed":
                self.message(f"[yellow]![/] {escape(progress.checkpoint_delayed.message)}")
            case "training_restarted":
                restarted = progress.training_restarted
                self.message(
                    f"[bold magenta]↻ training process died ({escape(restarted.cause)}); going on "
                    f"after step {restarted.from_step} from {restarted.source}[/]"
                )
            case "warning":
                self.message(f"[yellow]![/] {escape(progress.warning.message)}")
                if progress.warning.detail:
                    first, _, _ = progress.warning.detail.partition("\n\n")
                    self.message(f"[dim]{escape(first)}[/]")
        self._update_bar(progress)

    def _update_bar(self, progress: TrainingProgress) -> None:
        position = progress.position
        if progress.HasField("step_metrics"):
            step = progress.step_metrics
            metrics = (
                f"loss [bold]{step.loss:.4f}[/] [dim]lr {step.learning_rate:.3g} "
                f"{step.examples_per_second:,.0f}/s[/]"
            )
            if progress.HasField("at_risk") and self._console.width >= _WIDE:
                seconds = progress.at_risk.seconds_since_checkpoint
                metrics += f" [dim]at risk {seconds:.0f} s[/]"
            self._bar.update(self._task, metrics=metrics)
        elif progress.HasField("phase_progress"):
            moved = progress.phase_progress
            metrics = f"{size(moved.done_bytes)} of {size(moved.total_bytes)}"
            self._bar.update(self._task, metrics=metrics)
        elif progress.HasField("phase_changed"):
            self._bar.update(self._task, metrics="")
        epoch = min(position.epoch + 1, position.total_epochs)
        description = self._phase
        if position.total_epochs:
            description = f"{self._phase} epoch {epoch}/{position.total_epochs}"
        self._bar.update(
            self._task,
            completed=max(position.fraction, self._bar.tasks[0].completed),
            description=description,
            eta=position.eta_seconds if position.HasField("eta_seconds") else None,
        )

    def _show_epoch(self, progress: TrainingProgress) -> None:
        done = progress.epoch_completed
        metrics = "  ".join(
            f"{name} [bold]{_number(value)}[/]"
            for name, value in sorted(done.metrics.items(), key=_metric_order)
        )
        star = " [yellow]★[/]" if done.is_best else ""
        self.message(
            f"epoch {done.epoch + 1:>3}  {metrics}  [dim]lr {done.learning_rate:.3g} "
            f"{done.seconds:.1f} s[/]{star}"
        )

    def _show_checkpoint(self, committed: progress_pb2.CheckpointCommitted) -> None:
        checkpoint = committed.checkpoint
        trigger = words(CheckpointTrigger.Name(checkpoint.trigger), "CHECKPOINT_TRIGGER_")
        self.message(
            f"[dim]  checkpoint at step {checkpoint.step} ({trigger}): "
            f"{size(checkpoint.logical_bytes)}, {size(checkpoint.uploaded_bytes)} uploaded, "
            f"training waited {committed.stall_seconds * 1000:.0f} ms[/]"
        )


def _metric_order(item: tuple[str, float]) -> tuple[bool, str]:
    """What was trained on first, then the rest by name."""
    return (not item[0].startswith("train_"), item[0])


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) and abs(value) < 1e5 else f"{value:.3g}"
