"""The stored state of a daemon that is not running, as a test may want it to be."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable

from tests.kit.node import Node

Row = dict[str, object]


def edit_rows(node: Node, table: str, change: Callable[[Row], object]) -> None:
    """Have `change` work on every stored document of a table."""
    with contextlib.closing(sqlite3.connect(node.state_root / "state.db")) as database, database:
        for row_id, text in database.execute(f"SELECT id, document FROM {table}").fetchall():
            document = json.loads(text)
            change(document)
            database.execute(
                f"UPDATE {table} SET document = ? WHERE id = ?",
                (json.dumps(document).encode(), row_id),
            )
