"""Where an operation may run: what it asks of a trainer, and who has that and room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3
from sqlalchemy import Connection

from checkpoint_store.digests import canonical_json, parse_canonical_json
from control_plane import times
from control_plane.database import attempts, queue, trainers
from control_plane.database.trainers import TrainerRecord
from control_plane.states import State


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels as the database keeps them."""
    return canonical_json(dict(labels)).decode()


def parse_labels(text: str) -> dict[str, str]:
    """The labels that the database keeps."""
    labels: dict[str, str] = parse_canonical_json(text.encode())
    return labels


def demand_digest(trainer_labels: str, environment: bytes | None) -> str:
    """Names what an operation asks of a trainer: the same for all who ask the same.

    Args:
        trainer_labels: As the database keeps them.
        environment: Of its newest attempt; None before the first.
    """
    ran = b"" if environment is None else b"\1" + environment
    return blake3(trainer_labels.encode() + b"\0" + ran).hexdigest()


@dataclass(frozen=True)
class Demand:
    """What an operation asks of a trainer."""

    #: All of these.
    labels: Mapping[str, str]
    #: Of its newest attempt; None before the first.
    environment: bytes | None

    @classmethod
    def of(cls, trainer_labels: str, environment: bytes | None) -> Demand:
        """As the database keeps it."""
        return cls(parse_labels(trainer_labels), environment)


class TrainerPool:
    """The trainers as one round finds them, and what it gives them.

    Args:
        known: All there are, by id.
        load: Trainings on each, with those that it keeps room for.
        full: Those that said that they are full, whatever the load here is.
        now: In microseconds since 1970.
    """

    def __init__(
        self,
        known: Sequence[TrainerRecord],
        load: Mapping[str, int],
        full: frozenset[str],
        now: int,
    ) -> None:
        self.known = known
        self.available = [trainer for trainer in known if trainer.takes_work(now)]
        self._load = Counter(load)
        self._full = full
        self._labels = {each.trainer_id: parse_labels(each.labels).items() for each in known}

    def has_labels(self, trainer: TrainerRecord, demand: Demand) -> bool:
        """Whether a trainer announced all labels that are asked for."""
        return demand.labels.items() <= self._labels[trainer.trainer_id]

    def candidates(self, demand: Demand) -> list[TrainerRecord]:
        """Those that take work and have what is asked, with room or without.

        The same bytes come out only where the environment is the same: where there are such
        trainers, only they.
        """
        return self.alike(demand) or self._labelled(demand)

    def alike(self, demand: Demand) -> list[TrainerRecord]:
        """Of the candidates those in the environment of the newest attempt."""
        return [each for each in self._labelled(demand) if each.environment == demand.environment]

    def _labelled(self, demand: Demand) -> list[TrainerRecord]:
        return [each for each in self.available if self.has_labels(each, demand)]

    def has_room(self, trainer: TrainerRecord) -> bool:
        """Whether a trainer may take one more."""
        return not self.refuses(trainer) and self.free(trainer) > 0

    def refuses(self, trainer: TrainerRecord) -> bool:
        """Whether a trainer said that it is full, whatever the load here is."""
        return trainer.trainer_id in self._full

    def any_room(self) -> bool:
        """Whether there is room anywhere."""
        return any(self.has_room(trainer) for trainer in self.available)

    def free(self, trainer: TrainerRecord) -> int:
        """Trainings it may take."""
        return trainer.capacity - self._load[trainer.trainer_id]

    def take(self, trainer_id: str) -> None:
        """One more training is on a trainer, or has room kept there."""
        self._load[trainer_id] += 1

    def give_back(self, trainer_id: str) -> None:
        """One training is there no more, or no room is kept for it."""
        self._load[trainer_id] -= 1


def read_pool(connection: Connection, full: frozenset[str], *, lock: bool) -> TrainerPool:
    """The trainers as they are now; with `lock`, nobody else gives them work meanwhile."""
    known = trainers.every(connection, lock=lock)
    load = Counter(attempts.load_by_trainer(connection))
    load.update(kept.moving_to for kept in queue.moving(connection, (State.RUNNING, State.PENDING)))
    return TrainerPool(known, load, full, times.now())
