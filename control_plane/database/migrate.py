"""Brings the tables to this version, at the start of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, text

from everstep.errors import EverstepError, Reason

MIGRATIONS: Final = Path(__file__).parent / "migrations"
#: One control plane at a time migrates a Postgres; the number only has to be ours.
_ADVISORY_LOCK: Final = 0x6576657273746570


def migrate(connection: Connection) -> None:
    """Applies what is missing, in the connection's transaction: all of it or nothing.

    Raises:
        EverstepError: DATABASE_UNAVAILABLE when the tables are of a newer version.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise EverstepError(
            Reason.DATABASE_UNAVAILABLE,
            f"the database was made by a newer version ({error}); run that version, or set "
            "EVERSTEP_DATABASE_URL to another database",
        ) from None
