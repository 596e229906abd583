"""CudaDevice: all that is CUDA's alone.

Not yet run on hardware: tests/training/test_cuda.py runs it where there is one.
"""

from __future__ import annotations

import mmap
import os
import warnings
from contextlib import suppress
from typing import Any, Final

import torch

from everstep.errors import EverstepError, Reason
from trainer_service.child.devices.device import Device
from trainer_service.child.memory_errors import is_out_of_memory
from trainer_service.child.randomness import seed_too

#: What cuBLAS must be told before it starts, to add in the same order each time.
_WORKSPACE: Final = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
#: Variables that decide which kernels run, or how exactly they compute.
_VARIABLES: Final = ("CUBLAS", "CUDNN_", "NVIDIA_TF32_", "TORCH_BLAS_", "TORCH_CUDNN_")
#: Memory that is pinned for every context, as torch's own pinned memory is.
_PORTABLE: Final = 1


class CudaDevice(Device):
    """One CUDA device."""

    def __init__(self, index: int) -> None:
        super().__init__(torch.device("cuda", index))
        #: Addresses of the memory that is registered.
        self._pinned: set[int] = set()

    def start(self) -> None:
        os.environ.setdefault(*_WORKSPACE)
        count = torch.cuda.device_count()
        if self.place.index >= count:
            raise self._not_there(f"torch {torch.__version__} sees {count or 'no'} CUDA devices")
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.cuda.set_device(self.place)
            self._copies = torch.cuda.Stream(self.place)  # type: ignore[no-untyped-call]
            self.description = f"{torch.cuda.get_device_name(self.place)} ({self.place})"
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise self._not_there(str(error).partition("\n")[0]) from error
        # Trying kernels out chooses by the clock; TensorFloat-32 is not what float32 says.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        seed_too(torch.cuda.default_generators[self.place.index])

    def fingerprint(self) -> dict[str, str]:
        gpu = torch.cuda.get_device_properties(self.place)
        return {
            "device": self.place.type,
            # Kernels divide their work by the number of processors.
            "gpu": f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.multi_processor_count} processors",
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "gpu_variables": " ".join(
                f"{name}={value}"
                for name, value in sorted(os.environ.items())
                if name.startswith(_VARIABLES)
            ),
        }

    def received(self, tensor: torch.Tensor) -> torch.Tensor:
        # Torch's pool of pinned memory keeps the copy until it has arrived.
        pinned = tensor.pin_memory() if tensor.device.type == "cpu" else tensor
        return pinned.to(self.place, non_blocking=True)

    def pin(self, memory: mmap.mmap) -> None:
        address = _address(memory)
        status = _runtime().cudaHostRegister(address, len(memory), _PORTABLE)
        if int(status) == 0:
            self._pinned.add(address)
            return
        self._forget_last_error()
        warnings.warn(
            f"memory for snapshots cannot be pinned (CUDA error {int(status)}); copies from "
            f"{self.description} are slower",
            RuntimeWarning,
            stacklevel=2,
        )

    def unpin(self, memory: mmap.mmap) -> None:
        address = _address(memory)
        if address in self._pinned:
            self._pinned.discard(address)
            if int(_runtime().cudaHostUnregister(address)):
                self._forget_last_error()

    def copy_out(self, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        # A step in flight must not be copied half, and none may begin before the copy has ended.
        self._copies.wait_stream(torch.cuda.current_stream(self.place))
        with torch.cuda.stream(self._copies):
            torch._foreach_copy_(targets, sources, non_blocking=True)
        self._copies.synchronize()

    def _forget_last_error(self) -> None:
        """CUDA keeps the error of a failed call, and the next kernel would be blamed for it."""
        with suppress(RuntimeError):
            torch.ones(1, device=self.place).add_(1)

    def _not_there(self, why: str) -> EverstepError:
        return EverstepError(
            Reason.ENVIRONMENT_MISMATCH,
            f"the trainer is to train on {self.place}, and {why}; set EVERSTEP_DEVICE to a device "
            "that is there, to cpu or to auto, or see to the driver and to torch's build",
            metadata={"device": str(self.place)},
        )


def _address(memory: mmap.mmap) -> int:
    return torch.frombuffer(memory, dtype=torch.uint8).data_ptr()


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
