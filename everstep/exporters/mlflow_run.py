"""A run of an MLflow tracking server, or of a database that MLflow keeps."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final, TypeVar

# MLflow tells its makers of its use, unless the environment says otherwise; nothing of it on
# standard output; and an error after half a minute without an answer rather than after four.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from everstep.errors import EverstepError, Reason
from everstep.exporters.entries import Entry, Scalar
from everstep.exporters.hyperparameters import hyperparameters
from everstep.sdk.operations import Operation, OperationState

#: The tags by which a run is found, and taken up again.
OPERATION_TAG: Final = "everstep.operation_id"
SEQUENCE_TAG: Final = "everstep.sequence"
_EVENT_TAG: Final = "everstep.event"

#: What one request may carry.
_METRICS, _PARAMS, _TAGS = 1000, 100, 100
#: Older servers take no longer ones.
_VALUE_LENGTH: Final = 500
_TAG_LENGTH: Final = 5000
_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9_./ -]")

_STATUS: Final[Mapping[OperationState, str]] = {
    OperationState.PENDING: "SCHEDULED",
    OperationState.RUNNING: "RUNNING",
    OperationState.CANCELLING: "RUNNING",
    OperationState.COMPLETED: "FINISHED",
    OperationState.FAILED: "FAILED",
    OperationState.CANCELLED: "KILLED",
}

Item = TypeVar("Item")


class MlflowRun:
    """One operation's run, found by a tag; another tag says how far it is.

    That tag is written after what it speaks of. What an export that was killed had written beyond
    it is recognised and not written again; so is a step that is trained again with the same values,
    as an exact resume does. MLflow keeps every point: where the values differ, both are there.

    Args:
        tracking_uri: As MLflow takes it: http(s)://HOST, sqlite:///PATH, databricks, ...
        experiment: Made when it is not there.
        operation: Whose log it is.

    Raises:
        EverstepError: SERVICE_UNAVAILABLE when MLflow does not answer, INVALID_REQUEST when it
            refuses.
    """

    def __init__(self, tracking_uri: str, experiment: str, operation: Operation) -> None:
        self._uri = tracking_uri
        with self._answered():
            self._client = MlflowClient(tracking_uri=tracking_uri)
            self._run_id = self._find_run(experiment, operation)
            self._load()
            self._write_parameters(operation)

    @property
    def place(self) -> str:
        return self._run_id

    @property
    def sequence(self) -> int:
        return self._sequence

    def write(self, entries: Sequence[Entry]) -> None:
        with self._answered():
            try:
                self._write(entries)
            except MlflowException:
                # Part of it may be there.
                self._load()
                raise

    def close(self) -> None:
        """MLflow keeps nothing open."""

    def _find_run(self, experiment: str, operation: Operation) -> str:
        found = self._client.get_experiment_by_name(experiment)
        experiment_id: str = (
            self._client.create_experiment(experiment) if found is None else found.experiment_id
        )
        runs = self._client.search_runs(
            [experiment_id], f"tags.`{OPERATION_TAG}` = '{operation.id}'", max_results=1
        )
        if runs:
            run_id: str = runs[0].info.run_id
            return run_id
        created = self._client.create_run(
            experiment_id,
            start_time=_milliseconds(operation.created),
            run_name=operation.name,
            tags={
                OPERATION_TAG: operation.id,
                SEQUENCE_TAG: "0",
                "everstep.strategy_digest": operation.strategy_digest,
                **{f"everstep.label.{name}": value for name, value in operation.labels.items()},
            },
        )
        new_id: str = created.info.run_id
        return new_id

    def _load(self) -> None:
        """How far the run is: its sequence, and the newest step of each metric."""
        run = self._client.get_run(self._run_id)
        self._sequence = int(run.data.tags.get(SEQUENCE_TAG, "0"))
        self._parameters = set(run.data.params)
        self._newest_step: dict[str, int] = {
            metric.key: metric.step for metric in run.data.to_proto().metrics
        }
        #: Values by step of metrics that went back: as MLflow has them, and as they are on the way.
        self._there: dict[str, dict[int, float]] = {}
        self._on_the_way: dict[str, dict[int, float]] = {}

    def _write_parameters(self, operation: Operation) -> None:
        # What a resume has changed stands in its events: a parameter of MLflow's never changes.
        missing = [
            Param(_key(name), str(value)[:_VALUE_LENGTH])
            for name, value in hyperparameters(operation.strategy.content).items()
            if _key(name) not in self._parameters
        ]
        for some in _portions(missing, _PARAMS):
            self._client.log_batch(self._run_id, params=some)

    def _write(self, entries: Sequence[Entry]) -> None:
        metrics, tags = [], []
        for entry in entries:
            time = _milliseconds(entry.time)
            for scalar in entry.scalars:
                name = _key(scalar.name)
                if not self._is_there(name, scalar):
                    metrics.append(Metric(name, scalar.value, time, scalar.step))
                    self._remember(name, scalar)
            if entry.text is not None:
                text = f"{entry.text.kind}: {entry.text.message}"[:_TAG_LENGTH]
                tags.append(RunTag(f"{_EVENT_TAG}.{entry.sequence:06}", text))
        for some_metrics in _portions(metrics, _METRICS):
            self._client.log_batch(self._run_id, metrics=some_metrics)
        for some_tags in _portions(tags, _TAGS):
            self._client.log_batch(self._run_id, tags=some_tags)
        self._on_the_way.clear()
        self._write_state(entries)
        self._client.set_tag(self._run_id, SEQUENCE_TAG, str(entries[-1].sequence))
        self._sequence = entries[-1].sequence

    def _write_state(self, entries: Sequence[Entry]) -> None:
        changed = next((entry for entry in reversed(entries) if entry.state is not None), None)
        if changed is None or changed.state is None:
            return
        status = _STATUS.get(changed.state, "RUNNING")
        if changed.state.is_final:
            self._client.set_terminated(self._run_id, status, _milliseconds(changed.time))
        else:
            self._client.update_run(self._run_id, status)

    def _is_there(self, name: str, scalar: Scalar) -> bool:
        """Whether the run has this point, with the same value or one that was measured."""
        if scalar.step > self._newest_step.get(name, -1):
            return False
        if name not in self._there:
            history = self._client.get_metric_history(self._run_id, name)
            self._there[name] = {metric.step: metric.value for metric in history}
        on_the_way = self._on_the_way.get(name, {})
        value = on_the_way.get(scalar.step, self._there[name].get(scalar.step))
        return value is not None and (scalar.measured or _same(value, scalar.value))

    def _remember(self, name: str, scalar: Scalar) -> None:
        self._newest_step[name] = max(scalar.step, self._newest_step.get(name, -1))
        self._on_the_way.setdefault(name, {})[scalar.step] = scalar.value
        if name in self._there:
            self._there[name][scalar.step] = scalar.value

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            message = " ".join(str(error).split())
            if error.get_http_status_code() >= 500:
                raise EverstepError(
                    Reason.SERVICE_UNAVAILABLE,
                    f"MLflow does not answer at {self._uri}; export again when it does, and it "
                    f"goes on ({message[:300]})",
                ) from None
            raise EverstepError(
                Reason.INVALID_REQUEST, f"MLflow at {self._uri} refuses: {message[:500]}"
            ) from None


def _key(name: str) -> str:
    """With the characters that MLflow allows."""
    return _FORBIDDEN.sub("_", name)


def _same(stored: float, value: float) -> bool:
    if math.isnan(value) or math.isnan(stored):
        # MLflow's SQL keeps a NaN apart; other stores give 0.
        return math.isnan(value) and math.isnan(stored)
    # Its SQL has no infinity, but the largest number.
    return stored == value or (math.isinf(value) and abs(stored) >= sys.float_info.max)


def _portions(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)
