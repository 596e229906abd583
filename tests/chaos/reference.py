"""What each strategy ends with when nothing happens to it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from everstep.rpc.options import open_sync_channel
from everstep.trainer.v1.trainer_pb2 import StartTrainingRequest
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from tests.chaos.plan import STRATEGIES
from tests.services.processes import ServiceProcess


def uninterrupted(names: Iterable[str], folder: Path) -> dict[str, dict[str, str]]:
    """The digests of each strategy, trained by a trainer alone with a folder as its store."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "EVERSTEP_STORE_URL": f"file://{folder.resolve()}/store",
        "EVERSTEP_STATE_DIR": str(folder.resolve() / "state"),
        "EVERSTEP_THREADS": "1",
        "EVERSTEP_SPARE_CHILDREN": "1",
    }
    trainer = ServiceProcess("trainer_service", settings, folder / "trainer.log").start()
    try:
        with open_sync_channel(trainer.address) as channel:
            stub = TrainerServiceStub(channel)
            return {name: _digests(stub, name) for name in names}
    finally:
        trainer.kill()


def _digests(stub: TrainerServiceStub, name: str) -> dict[str, str]:
    request = StartTrainingRequest(operation_id=f"op-{name}", strategy=STRATEGIES[name])
    *_, last = stub.StartTraining(request)
    assert last.HasField("completed"), last
    return dict(last.completed.result.digests)
