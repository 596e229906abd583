"""Strategies: read strictly, checked, completed with defaults, and named by a digest.

The command line, the control plane and the trainer refuse the same things in the same words,
because they all call `validate_message` and `resolve_strategy`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import protovalidate
import yaml
from blake3 import blake3
from google.protobuf import json_format
from google.protobuf.message import Message

from everstep.errors import EverstepError, FieldViolation, Reason
from everstep.strategy_faults import find_faults
from everstep.training.v1 import strategy_pb2

#: A strategy file is read whole; nobody writes a longer one by hand.
MAX_STRATEGY_FILE_BYTES = 1024 * 1024


def read_strategy(path: Path) -> strategy_pb2.TrainingStrategy:
    """The strategy in a YAML or JSON file, resolved and valid.

    Raises:
        EverstepError: INVALID_STRATEGY, with the fields that are refused.
    """
    try:
        if path.stat().st_size > MAX_STRATEGY_FILE_BYTES:
            raise _refused(f"{path} is larger than {MAX_STRATEGY_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _refused(f"there is no file {path}; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(f"{path} cannot be read: {error}") from None
    try:
        content = _StrictLoader(text).get_single_data()
    except yaml.YAMLError as error:
        place = " ".join(str(error).split())
        raise _refused(f"{path} is not valid YAML: {place}") from None
    except RecursionError:
        raise _refused(f"{path} is nested too deeply") from None
    return parse_strategy(content)


def parse_strategy(content: Any) -> strategy_pb2.TrainingStrategy:
    """The strategy that plain dicts and lists declare, resolved and valid.

    Raises:
        EverstepError: INVALID_STRATEGY, with the fields that are refused.
    """
    if not isinstance(content, dict):
        raise _refused("a strategy is a mapping with name, data, model, loss, optimizer, training")
    strategy = strategy_pb2.TrainingStrategy()
    faults = list(find_faults(content, strategy.DESCRIPTOR))
    if faults:
        raise _violated("strategy", Reason.INVALID_STRATEGY, faults)
    try:
        json_format.ParseDict(content, strategy, ignore_unknown_fields=False)
    except (json_format.ParseError, TypeError, ValueError) as error:
        raise _refused(f"the strategy is refused: {' '.join(str(error).split())}") from None
    resolved = resolve_strategy(strategy)
    validate_message(resolved, Reason.INVALID_STRATEGY)
    return resolved


def resolve_strategy(strategy: strategy_pb2.TrainingStrategy) -> strategy_pb2.TrainingStrategy:
    """A copy with every default filled in, so that what runs is what is stored."""
    resolved = strategy_pb2.TrainingStrategy()
    resolved.CopyFrom(strategy)
    if resolved.HasField("data") and not resolved.data.HasField("split"):
        split = resolved.data.split
        split.train, split.validation, split.test = 0.7, 0.15, 0.15
    if resolved.HasField("data"):
        resolved.data.sampling = resolved.data.sampling or "shuffle"
    if resolved.HasField("scheduler") and not resolved.scheduler.interval:
        resolved.scheduler.interval = "epoch"
    if resolved.HasField("training"):
        training = resolved.training
        if not training.HasField("accumulate"):
            training.accumulate = 1
        if not training.HasField("deterministic"):
            training.deterministic = True
        training.precision = training.precision or "float32"
        training.non_finite = training.non_finite or "fail"
        if training.HasField("early_stopping") and not training.early_stopping.monitor:
            training.early_stopping.monitor = "val_loss"
    checkpoint = resolved.checkpoint
    if not checkpoint.HasField("every_epochs"):
        checkpoint.every_epochs = 1
    if not checkpoint.HasField("every_seconds"):
        checkpoint.every_seconds = 300
    if not checkpoint.HasField("keep_last"):
        checkpoint.keep_last = 3
    if not checkpoint.HasField("keep_best"):
        checkpoint.keep_best = 1
    return resolved


def strategy_content(strategy: strategy_pb2.TrainingStrategy) -> dict[str, Any]:
    """The strategy as plain dicts and lists, in the names of the YAML file."""
    content: dict[str, Any] = json_format.MessageToDict(strategy, preserving_proto_field_name=True)
    return content


def strategy_digest(strategy: strategy_pb2.TrainingStrategy) -> str:
    """BLAKE3, in hexadecimal, of what decides the bytes of a training.

    The name and the checkpoint policy are left out: they change no bits.
    """
    content = strategy_content(strategy)
    for key in ("name", "checkpoint"):
        content.pop(key, None)
    content.get("data", {}).pop("workers", None)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return blake3(text.encode()).hexdigest()


def validate_message(message: Message, reason: Reason = Reason.INVALID_REQUEST) -> None:
    """Checks a message against the rules in its .proto file.

    Raises:
        EverstepError: `reason`, with one violation for each field that is refused.
    """
    violations = [
        FieldViolation(_field_path(violation), violation.proto.message)
        for violation in protovalidate.collect_violations(message)
    ]
    if violations:
        subject = "strategy" if reason is Reason.INVALID_STRATEGY else "request"
        raise _violated(subject, reason, violations)


def _field_path(violation: protovalidate.Violation) -> str:
    """As in `training.epochs` or `labels["a"]`."""
    path = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        subscript = element.subscript
        if subscript is not None:
            value = subscript.value
            path += f"[{json.dumps(value)}]" if isinstance(value, str | int) else f"[{value}]"
    return path


def _refused(message: str) -> EverstepError:
    return EverstepError(Reason.INVALID_STRATEGY, message)


def _violated(subject: str, reason: Reason, violations: list[FieldViolation]) -> EverstepError:
    listed = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
    return EverstepError(reason, f"the {subject} is refused: {listed}", violations=violations)


class _StrictLoader(yaml.SafeLoader):
    """YAML in which no key is given twice, and 1e-3 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# YAML 1.1 reads 1e-3 as a text, because it has no point.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
