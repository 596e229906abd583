"""Strategies for tests: small, real, and slow enough to be killed in mid-epoch."""

from __future__ import annotations

from typing import Any

from everstep.strategy import parse_strategy
from everstep.training.v1.strategy_pb2 import TrainingStrategy


def digits(epochs: int = 6, **changes: Any) -> TrainingStrategy:
    """A CNN with BatchNorm and dropout on digits: most of a second an epoch; it does them all."""
    content: dict[str, Any] = {
        "name": "digits-cnn",
        "seed": 11,
        "data": {"source": "builtin:digits", "target": "label"},
        "model": {"factory": "cnn", "args": {"channels": [24, 48], "dropout": 0.2}},
        "loss": "cross_entropy",
        "optimizer": {"name": "AdamW", "args": {"lr": 0.002}},
        "scheduler": {"name": "CosineAnnealingLR", "args": {"T_max": epochs}},
        "training": {
            "epochs": epochs,
            "batch_size": 8,
            "gradient_clip": 1.0,
            "early_stopping": {"monitor": "val_loss", "patience": max(50, epochs)},
        },
        "checkpoint": {"every_steps": 50, "every_epochs": 1, "keep_last": 100},
    }
    for key, value in changes.items():
        if isinstance(value, dict):
            content[key] = {**content[key], **value}
        else:
            content[key] = value
    return parse_strategy(content)
