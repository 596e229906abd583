"""A folder of TensorBoard's event files, which is appended to."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from everstep.errors import EverstepError, Reason
from everstep.exporters.entries import Entry
from everstep.exporters.hyperparameters import hyperparameters
from everstep.sdk.operations import Operation

_STATE: Final = "everstep.json"
_FILE_VERSION: Final = "brain.Event:2"
_START: Final = SessionLog(status=SessionLog.START)


class TensorBoardRun:
    """One operation's run: curves in its folder, texts in `log` below it.

    The event files are only ever appended to. After each write a small file says how many bytes
    of them belong to which sequence; what stands behind these bytes was written by an export that
    was killed, and is cut off and written again, the same bytes.

    Args:
        folder: TensorBoard's log directory.
        operation: Whose log it is.

    Raises:
        EverstepError: INVALID_REQUEST when the folder cannot be written, another export writes
            there, or its event files are shorter than they were.
    """

    def __init__(self, folder: Path, operation: Operation) -> None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", operation.name).strip("._")
        self._folder = folder / f"{name}-{operation.id}".lstrip("-")
        began = operation.created.timestamp()
        file_name = f"events.out.tfevents.{int(began)}.everstep"
        try:
            (self._folder / "log").mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self._folder)
            state = _read_state(self._folder / _STATE)
            self._sequence: int = state.get("sequence", 0)
            sizes = state.get("bytes", {})
            self._files = {
                path: _RecordFile(self._folder / path, sizes.get(path, 0))
                for path in (file_name, f"log/{file_name}")
            }
        except OSError as error:
            raise EverstepError(
                Reason.INVALID_REQUEST, f"{self._folder} cannot be written: {error.strerror}"
            ) from None
        self._curves, self._texts = self._files.values()
        if not state:
            self._write_heads(operation, began)

    @property
    def place(self) -> str:
        return str(self._folder)

    @property
    def sequence(self) -> int:
        return self._sequence

    def write(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._write_entry(entry)
            self._sequence = entry.sequence
        self._save()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        os.close(self._lock)

    def _write_heads(self, operation: Operation, began: float) -> None:
        for file in self._files.values():
            file.append(Event(wall_time=began, file_version=_FILE_VERSION))
            # The first is the beginning to TensorBoard, only others go back; see `_write_entry`.
            file.append(Event(wall_time=began, session_log=_START))
        self._curves.append(Event(wall_time=began, summary=_hyperparameters(operation, began)))
        self._save()

    def _write_entry(self, entry: Entry) -> None:
        time = entry.time.timestamp()
        if entry.goes_on_with is not None:
            # TensorBoard drops what it has of this step and of later ones.
            self._curves.append(Event(wall_time=time, step=entry.goes_on_with, session_log=_START))
        for scalar in entry.scalars:
            value = Summary.Value(tag=scalar.name, simple_value=scalar.value)
            self._curves.append(
                Event(wall_time=time, step=scalar.step, summary=Summary(value=[value]))
            )
        if entry.text is not None:
            self._texts.append(
                Event(
                    wall_time=time,
                    # Steps go back where a training does; the log's numbers never do.
                    step=entry.sequence,
                    summary=_text_summary(entry.text.kind, entry.text.message),
                )
            )

    def _save(self) -> None:
        sizes = {path: file.sync() for path, file in self._files.items()}
        target = self._folder / _STATE
        temporary = target.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump({"sequence": self._sequence, "bytes": sizes}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)


class _RecordFile:
    """A file of TensorBoard's records, cut to the bytes that count.

    Args:
        path: It may not be there yet.
        size: Bytes that belong to what was said to be exported.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._file = path.open("ab")
        if self._file.tell() < size:
            self._file.close()
            raise EverstepError(
                Reason.INVALID_REQUEST,
                f"{path} has lost events that were exported; remove its folder to export anew",
            )
        self._file.truncate(size)
        self._file.seek(size)
        self._records = RecordWriter(self._file)

    def append(self, event: Event) -> None:
        self._records.write(event.SerializeToString(deterministic=True))

    def sync(self) -> int:
        """Puts it on the disk; returns its size."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def _hyperparameters(operation: Operation, began: float) -> Summary:
    summary: Summary = hparams_pb(
        hyperparameters(operation.strategy.content), operation.id, start_time_secs=began
    )
    data = summary.value[0].metadata.plugin_data
    # Their order within is another one each time.
    content = HParamsPluginData.FromString(data.content)
    data.content = content.SerializeToString(deterministic=True)
    return summary


def _text_summary(kind: str, message: str) -> Summary:
    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=[message.encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    metadata = create_summary_metadata(display_name="", description="")
    return Summary(value=[Summary.Value(tag=f"log/{kind}", metadata=metadata, tensor=tensor)])


def _read_state(path: Path) -> dict[str, Any]:
    """Empty when nothing was exported yet."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise EverstepError(
            Reason.INVALID_REQUEST, f"{path} is damaged; remove its folder to export anew"
        ) from None
    return found


def _lock(folder: Path) -> int:
    """Held until it is closed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise EverstepError(
            Reason.INVALID_REQUEST, f"another export writes to {folder}; wait for it or stop it"
        ) from None
    return descriptor
