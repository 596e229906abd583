"""Databases as earlier versions left them."""

from __future__ import annotations

from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, Table, insert

from control_plane.database.migrate import MIGRATIONS


def migrate_to(connection: Connection, revision: str) -> None:
    """The tables as they were at a revision."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def insert_row(connection: Connection, name: str, **values: Any) -> None:
    """A row of a table as it is, with nothing in the columns that are not named."""
    table = Table(name, MetaData(), autoload_with=connection)
    nothing = {
        column.name: column.type.python_type() for column in table.columns if not column.nullable
    }
    connection.execute(insert(table).values({**nothing, **values}))
