"""Numbers with intervals -> a table of the report, as report.json holds it."""

from dataclasses import asdict, dataclass
from typing import Any

from oneshot.report.stats import Interval

Value = str | float | Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns and rows with a title and an explanation."""

    name: str
    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    form: str = "points"  # how numbers are written: `points` (shares x 100), `change` (the same, with a sign), `number`

    def to_json(self) -> dict[str, Any]:
        """Return the table as report.json holds it: without its form."""
        rows = [[asdict(value) if isinstance(value, Interval) else value for value in row] for row in self.rows]
        texts = {name: getattr(self, name) for name in ("name", "title", "about")}
        return {**texts, "columns": list(self.columns), "rows": rows}
