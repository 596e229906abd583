"""Strategies on real data, small enough to be resumed at every step."""

from __future__ import annotations

from typing import Any

from everstep.strategy import parse_strategy
from everstep.training.v1.strategy_pb2 import TrainingStrategy

_DIGITS: dict[str, Any] = {
    "name": "digits",
    "seed": 7,
    "data": {"source": "builtin:digits", "target": "label"},
    "model": {"factory": "cnn", "args": {"channels": [4, 8], "dropout": 0.2}},
    "loss": "cross_entropy",
    "optimizer": {"name": "AdamW", "args": {"lr": 0.01}},
    "scheduler": {"name": "CosineAnnealingLR", "args": {"T_max": 3}},
    "training": {"epochs": 3, "batch_size": 128, "gradient_clip": 1.0, "accumulate": 3},
    "checkpoint": {"every_steps": 1},
}
_STOCKS: dict[str, Any] = {
    "name": "stocks",
    "seed": 8,
    "data": {"source": "builtin:stocks", "args": {"symbol": "IBM", "window": 6}},
    "model": {"factory": "gru", "args": {"hidden": 6}},
    "loss": "smooth_l1",
    "optimizer": {"name": "RMSprop", "args": {"lr": 0.003, "momentum": 0.5}},
    "scheduler": {"name": "OneCycleLR", "args": {"max_lr": 0.02}, "interval": "step"},
    "training": {"epochs": 3, "batch_size": 512},
    "checkpoint": {"every_steps": 1},
}
_DIABETES: dict[str, Any] = {
    "name": "diabetes",
    "seed": 9,
    "data": {"source": "builtin:diabetes"},
    "model": {"factory": "mlp", "args": {"hidden": [16], "dropout": 0.1}},
    "loss": "mse",
    "optimizer": {"name": "Adam", "args": {"lr": 0.05}},
    "scheduler": {"name": "ReduceLROnPlateau", "args": {"patience": 0, "factor": 0.5}},
    "training": {
        "epochs": 40,
        "batch_size": 128,
        "precision": "float64",
        "early_stopping": {"monitor": "val_loss", "patience": 2},
    },
    "checkpoint": {"every_steps": 1},
}


def digits(**changes: Any) -> TrainingStrategy:
    """A CNN with BatchNorm, dropout, clipping, and a tail in the accumulation."""
    return _changed(_DIGITS, changes)


def stocks(**changes: Any) -> TrainingStrategy:
    """A GRU on daily prices, with a schedule that advances by steps."""
    return _changed(_STOCKS, changes)


def diabetes(**changes: Any) -> TrainingStrategy:
    """A regression in float64 that early stopping ends."""
    return _changed(_DIABETES, changes)


def _changed(content: dict[str, Any], changes: dict[str, Any]) -> TrainingStrategy:
    merged = {
        key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value
        for key, value in content.items()
    }
    merged |= {key: value for key, value in changes.items() if not isinstance(value, dict)}
    return parse_strategy(merged)
