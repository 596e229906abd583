"""The tables. Times are microseconds since 1970; `payload` and its like are protobuf messages."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

operations = Table(
    "operations",
    metadata,
    Column("operation_id", String(64), primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("strategy", LargeBinary, nullable=False),
    Column("strategy_digest", String(64), nullable=False),
    Column("restart_policy", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("end_time", BigInteger),
    # The number of the newest attempt; older ones are fenced.
    Column("attempt", Integer, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    # The oldest event that is kept; what was before it is compacted.
    Column("first_sequence", BigInteger, nullable=False, server_default="1"),
    # The control plane that follows the open attempt, and until when it says so.
    Column("owner", String(64), nullable=False),
    Column("owner_lease_time", BigInteger, nullable=False),
    # Attempts lost since the last durable step forward.
    Column("losses", Integer, nullable=False),
    # Not dispatched before.
    Column("due_time", BigInteger, nullable=False),
    Column("waiting_for", Text, nullable=False),
    Column("position", LargeBinary, nullable=False),
    # Work at risk, as last heard of the attempt that runs.
    Column("at_risk", LargeBinary),
    Column("metrics", Text, nullable=False),
    Column("result", LargeBinary),
    Column("error", LargeBinary),
    Column("discard", Boolean, nullable=False),
    Column("overrides", LargeBinary),
    # The newest attempt at the time of the last resume; -1 when there was none.
    Column("resumed_after", Integer, nullable=False),
    # Where the last resume begins, until it has a checkpoint of its own.
    Column("resume_checkpoint_id", String(64)),
    # Whether the caller named that checkpoint: then no other may take its place.
    Column("resume_named", Boolean, nullable=False),
    Column("parent_operation_id", String(64), nullable=False),
    Column("from_checkpoint", LargeBinary),
    Column("priority", Integer, nullable=False, server_default="0"),
    # What orders the queue: the time of creation, earlier by an hour for each point of priority.
    Column("queue_time", BigInteger, nullable=False, server_default="0"),
    # Labels that its trainer must have, as JSON.
    Column("trainer_labels", Text, nullable=False, server_default="{}"),
    # The digest of what it asks of a trainer: labels, and the environment of its newest attempt.
    Column("demand", String(64), nullable=False, server_default=""),
    # The trainer that its training is handed over to, which keeps room for it.
    Column("moving_to", String(63), nullable=False, server_default=""),
    Index(None, "create_time", "operation_id"),
    Index(None, "state", "due_time"),
    # A round of the dispatcher reads this index and no row, however long the queue is.
    Index(None, "state", "demand", "queue_time", "operation_id", "due_time"),
    Index(None, "moving_to"),
)

operation_labels = Table(
    "operation_labels",
    metadata,
    Column(
        "operation_id", ForeignKey("operations.operation_id", ondelete="CASCADE"), primary_key=True
    ),
    Column("name", String(63), primary_key=True),
    Column("value", Text, nullable=False),
    Index(None, "name", "value"),
)

requests = Table(
    "requests",
    metadata,
    Column("request_id", String(36), primary_key=True),
    Column("payload_digest", String(64), nullable=False),
    Column(
        "operation_id",
        ForeignKey("operations.operation_id", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("create_time", BigInteger, nullable=False),
    Index(None, "operation_id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column(
        "operation_id", ForeignKey("operations.operation_id", ondelete="CASCADE"), primary_key=True
    ),
    Column("number", Integer, primary_key=True),
    Column("trainer_id", String(63), nullable=False),
    Column("environment", LargeBinary, nullable=False),
    Column("start_time", BigInteger, nullable=False),
    Column("end_time", BigInteger),
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    # COMPLETED, FAILED, ...; empty while the attempt is open.
    Column("ending", String(16), nullable=False),
    Column("end_reason", Text, nullable=False),
    Column("process_id", BigInteger, nullable=False),
    # The index of the newest event that is in the log.
    Column("cursor", BigInteger, nullable=False),
    # What it begins with; without one, from the beginning.
    Column("checkpoint", LargeBinary),
    Column("overrides", LargeBinary, nullable=False),
    # The trainer was told that it need not keep the events.
    Column("forgotten", Boolean, nullable=False),
    # Words after the end were refused, and the log says so.
    Column("late_noted", Boolean, nullable=False),
    # What is heard of it while it is open, and since when.
    Column("liveness", String(16), nullable=False, server_default="HEARD"),
    Column("liveness_time", BigInteger),
    Index(None, "trainer_id", "ending"),
    Index(None, "forgotten", "ending"),
)

events = Table(
    "events",
    metadata,
    Column(
        "operation_id", ForeignKey("operations.operation_id", ondelete="CASCADE"), primary_key=True
    ),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    # Of a trainer's word: which attempt said it, and its index there.
    Column("attempt", Integer),
    Column("attempt_index", BigInteger),
    Column("payload", LargeBinary, nullable=False),
    UniqueConstraint("operation_id", "attempt", "attempt_index"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("checkpoint_id", String(64), primary_key=True),
    Column("operation_id", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    # The event that committed it; newest in the operation is highest.
    Column("sequence", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("manifest_key", Text, nullable=False),
    Column("manifest_digest", String(64), nullable=False),
    Column("logical_bytes", BigInteger, nullable=False),
    Column("monitor", Text, nullable=False),
    Column("monitor_value", Float),
    Column("pinned", Boolean, nullable=False),
    # A trainer or a verification found it unreadable.
    Column("damaged", Boolean, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    ForeignKeyConstraint(["operation_id"], ["operations.operation_id"], ondelete="CASCADE"),
    Index(None, "operation_id", "sequence"),
    Index(None, "create_time", "checkpoint_id"),
    Index(None, "manifest_key"),
)

# Objects whose rows are gone: a manifest's key, or a prefix that ends with a slash.
removals = Table(
    "removals",
    metadata,
    Column("key", Text, primary_key=True),
    Column("create_time", BigInteger, nullable=False),
)

# What their attempts may store still is nobody's.
deleted_operations = Table(
    "deleted_operations",
    metadata,
    Column("operation_id", String(64), primary_key=True),
    Column("delete_time", BigInteger, nullable=False),
)

# Of operations that were deleted; each is gone once its trainer keeps nothing of it.
orphaned_attempts = Table(
    "orphaned_attempts",
    metadata,
    Column("operation_id", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("trainer_id", String(63), nullable=False),
    Index(None, "trainer_id"),
)

trainers = Table(
    "trainers",
    metadata,
    Column("trainer_id", String(63), primary_key=True),
    Column("address", Text, nullable=False),
    Column("capacity", Integer, nullable=False),
    Column("environment", LargeBinary, nullable=False),
    Column("lease_expire_time", BigInteger, nullable=False),
    # It said that it is about to stop.
    Column("stopping", Boolean, nullable=False),
    # A person asked for no new work on it, and for what it runs to move.
    Column("drained", Boolean, nullable=False),
    # As JSON.
    Column("labels", Text, nullable=False, server_default="{}"),
    Column("heard_time", BigInteger, nullable=False, server_default="0"),
)
