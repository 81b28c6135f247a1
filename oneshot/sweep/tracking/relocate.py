"""A store's folder -> its MLflow database names artifacts by where the folder is now.

MLflow records absolute addresses, so a store that was copied or renamed would read and write artifacts in its old
place.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

ARTIFACTS = "mlartifacts"
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def relocate(root: Path) -> None:
    """Change the addresses of artifacts that are under the `mlartifacts` of another folder."""
    database, here = root / "mlflow.db", (root / ARTIFACTS).as_uri()
    if not database.is_file():
        return
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, column in _ADDRESSES:
            if table not in tables:
                continue
            # everything before the folder's name, whatever the store was called
            place = f"instr({column} || '/', '/{ARTIFACTS}/')"
            rest = f"substr({column}, {place} + {len(ARTIFACTS) + 1})"
            connection.execute(
                f"UPDATE {table} SET {column} = ? || {rest} "
                f"WHERE {column} LIKE 'file://%' AND {place} > 0 AND {column} != ? || {rest}",
                (here, here),
            )
