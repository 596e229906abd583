"""`python -m trainer_service.child PIPE [HEARTBEAT]`: one training, told over an inherited socket.

Both are descriptors: the socket, and memory in which the trainer sees whether there is progress.

Plain PyTorch: it serves nothing, stores nothing and knows no gRPC. When the trainer is gone, so is
this process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from typing import Final

from trainer_service.child.heartbeat import Heartbeat
from trainer_service.child.pipe import ChildPipe, Ready, Train

_PR_SET_PDEATHSIG: Final = 1
#: The exit code of a process whose trainer is gone.
TRAINER_GONE: Final = 70


def main(descriptor: int, heartbeat_descriptor: int | None = None) -> int:
    """Trains once; the process ends with 0 after a last word, whatever it was."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C in a terminal is for whoever started the trainer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    heartbeat = Heartbeat(heartbeat_descriptor)
    pipe = ChildPipe(socket.socket(fileno=descriptor))

    from trainer_service.child.training_process import TrainingProcess
    from trainer_service.child.warming import warm_up

    warm_up()
    pipe.send(Ready(os.getpid()))
    train, slots = pipe.receive()
    if not isinstance(train, Train):
        return TRAINER_GONE
    TrainingProcess(pipe, train, slots, heartbeat).run()
    # All is said: taking torch apart would keep the last word waiting for a second.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
