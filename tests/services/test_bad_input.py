"""Bad input at every door: one clear line, the right status and reason, nothing half-made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from everstep.control.v1 import operations_pb2, operations_pb2_grpc
from everstep.control.v1.operations_pb2 import OPERATION_STATE_FAILED, Operation
from everstep.errors import EverstepError
from everstep.rpc.status import error_from_call
from everstep.trainer.v1 import trainer_pb2
from everstep.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from everstep.training.v1.checkpoint_pb2 import CheckpointReference
from everstep.training.v1.progress_pb2 import TrainingError
from everstep.training.v1.strategy_pb2 import TrainingStrategy
from tests.services.conftest import ACCESS_KEY
from tests.services.processes import ServiceProcess, wait_for
from tests.services.strategies import digits

Connect = Callable[[ServiceProcess], grpc.Channel]
MakeService = Callable[..., ServiceProcess]


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, EverstepError]:
    with pytest.raises(grpc.RpcError) as failure:
        call()
    code = failure.value.code()  # type: ignore[attr-defined]
    error = error_from_call(failure.value)
    assert "\n" not in error.message
    return code, error


def failure_of(stub: TrainerServiceStub, strategy: TrainingStrategy) -> TrainingError:
    messages = list(stub.StartTraining(trainer_pb2.StartTrainingRequest(strategy=strategy)))
    error = messages[-1].failed.error
    assert error.reason, messages[-1]
    assert "\n" not in error.message
    assert not error.restartable
    return error


def test_what_the_control_plane_refuses(make_control_plane: MakeService, connect: Connect) -> None:
    channel = connect(make_control_plane().start())
    operations = operations_pb2_grpc.OperationServiceStub(channel)

    code, error = refusal(
        lambda: operations.GetOperation(
            operations_pb2.GetOperationRequest(operation_id="op-nowhere"), timeout=10
        )
    )
    assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, "OPERATION_NOT_FOUND")
    assert "op-nowhere" in error.message

    for name in ("../../etc/passwd", "a/b", "", "x" * 100):
        code, error = refusal(
            lambda name=name: operations.CancelOperation(  # type: ignore[misc]
                operations_pb2.CancelOperationRequest(operation_id=name), timeout=10
            )
        )
        assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert [violation.field for violation in error.violations] == ["operation_id"]

    strategy = digits()
    strategy.name = "../digits"
    strategy.training.batch_size = 0
    code, error = refusal(
        lambda: operations.CreateOperation(
            operations_pb2.CreateOperationRequest(strategy=strategy), timeout=10
        )
    )
    assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_STRATEGY")
    assert {violation.field for violation in error.violations} == {
        "strategy.name",
        "strategy.training.batch_size",
    }

    large = digits()
    large.data.features.extend("x" * 1000 for _ in range(5 * 1024))
    code, _ = refusal(
        lambda: operations.CreateOperation(
            operations_pb2.CreateOperationRequest(strategy=large), timeout=10
        )
    )
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED

    listed = operations.ListOperations(operations_pb2.ListOperationsRequest(), timeout=10)
    assert not listed.operations


def test_data_and_names_that_the_trainer_refuses(
    make_trainer: MakeService, connect: Connect, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "table.csv").write_text("a,b\n1,2\n3,4\n5,6\n7,8\n9,10\n11,12\n13,14\n15,16\n")
    (data / "words.csv").write_text("a,label\n1,0\nmany,1\n")
    (data / "few.csv").write_text("a,label\n" + "".join(f"{n},{int(n == 29)}\n" for n in range(30)))
    (tmp_path / "secret.csv").write_text("a,label\n1,2\n")
    stub = TrainerServiceStub(connect(make_trainer().start()))

    def refused(field: str, **changes: Any) -> str:
        error = failure_of(stub, digits(**changes))
        assert error.reason == "INVALID_STRATEGY", error
        assert field in [violation.field for violation in error.violations], error
        return error.message

    table = {"training": {"batch_size": 2}, "model": {"factory": "mlp", "args": {}}}
    missing = {"source": "nowhere.csv", "target": "label"}
    assert "nowhere.csv" in refused("data.source", data=missing, **table)
    outside = {"source": "../secret.csv", "target": "label"}
    refused("data.source", data=outside, **table)
    address = {"source": "s3://bucket/table.csv", "target": "label"}
    assert "data root" in refused("data.source", data=address, **table)
    assert "a, b" in refused(
        "data.target", data={"source": "table.csv", "target": "label"}, **table
    )
    refused("data.source", data={"source": "words.csv", "target": "label"}, **table)
    refused("data.source", data={"source": "builtin:digit"})
    refused("training.batch_size", training={"batch_size": 5000})
    refused("model.args.widht", model={"factory": "cnn", "args": {"widht": 3}})
    refused("optimizer.name", optimizer={"name": "Adamm", "args": {}})
    refused("loss", loss="cross-entropy")
    assert not [
        training
        for training in stub.ListTrainings(trainer_pb2.ListTrainingsRequest()).trainings
        if not training.finished
    ]


def test_calls_that_the_trainer_refuses(make_trainer: MakeService, connect: Connect) -> None:
    stub = TrainerServiceStub(connect(make_trainer().start()))
    code, error = refusal(
        lambda: list(
            stub.WatchTraining(
                trainer_pb2.WatchTrainingRequest(operation_id="op-unknown", attempt=1)
            )
        )
    )
    assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, "TRAINING_NOT_FOUND")

    code, error = refusal(
        lambda: list(
            stub.StartTraining(
                trainer_pb2.StartTrainingRequest(operation_id="../x", strategy=digits())
            )
        )
    )
    assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")

    for reference in (
        CheckpointReference(manifest_key="../../etc/passwd", manifest_digest="0" * 64),
        CheckpointReference(
            manifest_key="operations/op-1/attempts/1/checkpoints/../x.json",
            manifest_digest="0" * 64,
        ),
    ):
        code, error = refusal(
            lambda reference=reference: list(  # type: ignore[misc]
                stub.ResumeTraining(
                    trainer_pb2.ResumeTrainingRequest(strategy=digits(), checkpoint=reference)
                )
            )
        )
        assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")

    missing = CheckpointReference(
        manifest_key="operations/op-1/attempts/1/checkpoints/ck-1.json", manifest_digest="0" * 64
    )
    messages = list(
        stub.ResumeTraining(
            trainer_pb2.ResumeTrainingRequest(strategy=digits(), checkpoint=missing)
        )
    )
    assert messages[-1].failed.error.reason == "CHECKPOINT_NOT_FOUND"


def test_wrong_credentials_end_a_training_before_its_first_step(
    make_control_plane: MakeService, make_trainer: MakeService, connect: Connect
) -> None:
    control_plane = make_control_plane().start()
    make_trainer(
        EVERSTEP_CONTROL_PLANE=control_plane.address,
        EVERSTEP_STORE_ACCESS_KEY=ACCESS_KEY,
        EVERSTEP_STORE_SECRET_KEY="wrong-secret",
    ).start()
    operations = operations_pb2_grpc.OperationServiceStub(connect(control_plane))
    created = operations.CreateOperation(
        operations_pb2.CreateOperationRequest(strategy=digits()), timeout=10
    )

    def failed() -> Operation | None:
        operation = operations.GetOperation(
            operations_pb2.GetOperationRequest(operation_id=created.operation_id), timeout=10
        )
        return operation if operation.state == OPERATION_STATE_FAILED else None

    operation = wait_for(failed, "the operation to fail")
    assert operation.error.reason == "STORE_ACCESS_DENIED"
    assert "\n" not in operation.error.message
    assert operation.position.step == 0
    assert not operation.resumable


@pytest.mark.parametrize("module", ["control_plane", "trainer_service"])
def test_a_port_in_use_is_said_in_one_line(
    module: str, make_control_plane: MakeService, make_trainer: MakeService
) -> None:
    make = make_control_plane if module == "control_plane" else make_trainer
    first = make().start()
    second = make("second", EVERSTEP_LISTEN=first.address)
    process = second.launch()
    assert process.wait(60) == 2
    lines = second.log.read_text().splitlines()
    assert lines[-1].startswith("error: cannot listen on")
    assert first.address.rpartition(":")[2] in lines[-1]
    assert "Traceback" not in second.log.read_text()


@pytest.mark.parametrize("module", ["control_plane", "trainer_service"])
def test_a_setting_that_makes_no_sense_is_said_in_one_line(
    module: str, make_control_plane: MakeService, make_trainer: MakeService
) -> None:
    make = make_control_plane if module == "control_plane" else make_trainer
    service = make(EVERSTEP_STORE_URL="ftp://somewhere")
    process = service.launch()
    assert process.wait(60) == 2
    assert service.log.read_text().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in service.log.read_text()
