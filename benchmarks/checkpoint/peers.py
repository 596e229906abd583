"""Other ways to bring the same state to the same object store, each set up at its best.

Each `save` returns when training may go on. What may go on meanwhile does, in a thread; the next
`save` waits for it, as none of them may be told to begin while the one before is on its way.
Files on the way stand in memory (/dev/shm).
"""

from __future__ import annotations

import io
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save

from benchmarks.checkpoint.server import BUCKET, Server

UPLOADS_AT_A_TIME: Final = 2
#: minio-py's own parts are 5 MiB; these are what it does best with.
PART_BYTES: Final = 64 * 1024 * 1024


class Peer(ABC):
    """A way to save.

    Args:
        model: What is trained.
        optimizer: Its optimizer.
        server: Where to.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, server: Server) -> None:
        self.model = model
        self.optimizer = optimizer
        self.server = server
        self.client = server.client()
        self.folder = Path("/dev/shm") / f"everstep-bench-{os.getpid()}"
        self.folder.mkdir(exist_ok=True)
        self._thread = ThreadPoolExecutor(1)
        self._on_its_way: Future[Any] | None = None
        #: By time.time(), when each was in the store; and its bytes.
        self.durable_at: list[float] = []
        self.bytes: list[int] = []

    @abstractmethod
    def save(self, step: int) -> None:
        """Saves the state as it is now."""

    def finish(self) -> None:
        """Waits until all is in the store."""
        self.wait()
        self._thread.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def state(self) -> dict[str, Any]:
        """Weights and optimizer, as torch gives them."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def wait(self) -> None:
        """Until what was begun before is in the store."""
        if self._on_its_way is not None:
            self._on_its_way.result()
            self._on_its_way = None

    def go_on(self, call: Callable[[], None]) -> None:
        """In a thread."""
        self._on_its_way = self._thread.submit(call)

    def put(self, name: str, content: io.BytesIO) -> None:
        """One object, in parts side by side where it has several."""
        length = content.getbuffer().nbytes
        self.client.put_object(
            BUCKET,
            name,
            content,
            length,
            part_size=PART_BYTES,
            num_parallel_uploads=UPLOADS_AT_A_TIME,
        )
        self._stored(length)

    def put_files(self, folder: Path) -> None:
        """Every file of a folder, which then goes."""
        files = [path for path in folder.rglob("*") if path.is_file()]

        def put_file(path: Path) -> None:
            parts = UPLOADS_AT_A_TIME if len(files) == 1 else 1
            self.client.fput_object(
                BUCKET,
                f"{folder.name}/{path.relative_to(folder)}",
                str(path),
                part_size=PART_BYTES,
                num_parallel_uploads=parts,
            )

        with ThreadPoolExecutor(UPLOADS_AT_A_TIME) as uploads:
            list(uploads.map(put_file, files))
        length = sum(path.stat().st_size for path in files)
        shutil.rmtree(folder)
        self._stored(length)

    def _stored(self, length: int) -> None:
        self.durable_at.append(self.server.now())
        self.bytes.append(length)


class Nothing(Peer):
    """Training alone."""

    name = "no checkpoints"

    def save(self, step: int) -> None:
        del step


class TorchSave(Peer):
    """torch.save to memory, then put_object; training waits for both."""

    name = "torch.save + put_object"

    def save(self, step: int) -> None:
        content = io.BytesIO()
        torch.save(self.state(), content)
        content.seek(0)
        self.put(f"torch-{step}.pt", content)


class CloneAndThread(Peer):
    """The state is cloned; a thread saves it to a file and uploads that."""

    name = "clone + thread + fput_object"

    def save(self, step: int) -> None:
        self.wait()
        clone = torch.utils._pytree.tree_map(
            lambda value: value.detach().clone() if isinstance(value, torch.Tensor) else value,
            self.state(),
        )

        def upload() -> None:
            folder = self.folder / f"clone-{step}"
            folder.mkdir()
            torch.save(clone, folder / "state.pt")
            self.put_files(folder)

        self.go_on(upload)


class AsyncSave(Peer):
    """torch.distributed.checkpoint.async_save, staged into shared memory that is used again."""

    name = "dcp.async_save + upload"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, server: Server) -> None:
        super().__init__(model, optimizer, server)
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=True,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )

    def save(self, step: int) -> None:
        self.wait()
        folder = self.folder / f"dcp-{step}"
        writer = FileSystemWriter(folder, thread_count=UPLOADS_AT_A_TIME, sync_files=False)
        with warnings.catch_warnings(action="ignore"):
            saved = async_save(
                self.state(), storage_writer=writer, async_stager=self._stager, no_dist=True
            )

        assert isinstance(saved, Future), "staging was to be done when the call returned"

        def upload() -> None:
            saved.result()
            self.put_files(folder)

        self.go_on(upload)


class TorchSnapshot(Peer):
    """torchsnapshot.Snapshot.async_take, then an upload of its files."""

    name = "torchsnapshot + upload"

    def save(self, step: int) -> None:
        import torchsnapshot

        self.wait()
        folder = self.folder / f"torchsnapshot-{step}"
        with warnings.catch_warnings(action="ignore"):
            pending = torchsnapshot.Snapshot.async_take(
                str(folder), {"model": self.model, "optimizer": self.optimizer}
            )

        def upload() -> None:
            pending.wait()
            self.put_files(folder)

        self.go_on(upload)


class LightningAsync(Peer):
    """Lightning's AsyncCheckpointIO around a plugin that saves and uploads."""

    name = "Lightning AsyncCheckpointIO"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, server: Server) -> None:
        super().__init__(model, optimizer, server)
        from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

        peer = self

        class UploadingCheckpointIO(TorchCheckpointIO):
            def save_checkpoint(
                self, checkpoint: Any, path: Any, storage_options: Any = None
            ) -> None:
                Path(path).parent.mkdir()
                super().save_checkpoint(checkpoint, path, storage_options)
                peer.put_files(Path(path).parent)

        self._plugin = AsyncCheckpointIO(UploadingCheckpointIO())

    def save(self, step: int) -> None:
        path = self.folder / f"lightning-{step}" / "state.ckpt"
        self._plugin.save_checkpoint(self.state(), str(path))

    def finish(self) -> None:
        self._plugin.teardown()
        super().finish()


class Accelerate(Peer):
    """accelerate's save_state, then an upload of its files; training waits for both."""

    name = "accelerate save_state + upload"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, server: Server) -> None:
        super().__init__(model, optimizer, server)
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=True)
        self._accelerator.prepare(model, optimizer)

    def save(self, step: int) -> None:
        folder = self.folder / f"accelerate-{step}"
        self._accelerator.save_state(str(folder))
        self.put_files(folder)


class S3Connector(Peer):
    """torch.save into s3torchconnector's writer, which uploads as it is written."""

    name = "torch.save + s3torchconnector"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, server: Server) -> None:
        super().__init__(model, optimizer, server)
        from s3torchconnector import S3Checkpoint, S3ClientConfig

        self._checkpoint = S3Checkpoint(
            "us-east-1",
            endpoint=f"http://{server.endpoint}",
            s3client_config=S3ClientConfig(part_size=PART_BYTES, force_path_style=True),
        )

    def save(self, step: int) -> None:
        name = f"connector-{step}.pt"
        with self._checkpoint.writer(f"s3://{BUCKET}/{name}") as writer:
            torch.save(self.state(), writer)
        self._stored(self.client.stat_object(BUCKET, name).size or 0)


PEERS: Final = {
    peer.name: peer
    for peer in (
        Nothing,
        TorchSave,
        CloneAndThread,
        AsyncSave,
        TorchSnapshot,
        LightningAsync,
        Accelerate,
        S3Connector,
    )
}
