"""An error is of its reason's class, wherever it is made and however it travels."""

from __future__ import annotations

import pickle

import pytest

import everstep
from everstep.errors import (
    CLASS_OF_REASON,
    DeadlineExceeded,
    EverstepError,
    FieldViolation,
    NonFiniteLoss,
    NotFound,
    OperationNotFound,
    Reason,
    TrainingFailed,
)


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_has_its_class(reason: Reason) -> None:
    violations = [FieldViolation("seed", "is none")]
    error = EverstepError(reason, "try again", violations=violations, metadata={"a": "b"})
    assert type(error) is CLASS_OF_REASON.get(reason, EverstepError)
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    for one in (error, copied):
        assert type(one) is type(error)
        assert (one.reason, one.message, str(one)) == (reason, "try again", "try again")
        assert (one.violations, one.metadata) == (tuple(violations), {"a": "b"})


def test_classes_stand_in_families() -> None:
    error = EverstepError(Reason.OPERATION_NOT_FOUND, "no")
    assert isinstance(error, OperationNotFound)
    assert isinstance(error, NotFound)
    assert isinstance(EverstepError(Reason.DEADLINE_EXCEEDED, "late"), TimeoutError)
    assert type(TrainingFailed(Reason.NON_FINITE_LOSS, "NaN")) is NonFiniteLoss
    assert type(TrainingFailed(Reason.ENVIRONMENT_MISMATCH, "torch")) is TrainingFailed
    assert type(DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "late")) is DeadlineExceeded


def test_users_find_every_class_in_the_package() -> None:
    for kind in CLASS_OF_REASON.values():
        assert getattr(everstep, kind.__name__) is kind
