"""Numbers with intervals -> a table of the report, as report.json holds it."""

from dataclasses import dataclass
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
        """Return the table as report.json holds it."""

        def plain(value: Value) -> Any:
            if isinstance(value, Interval):
                return {"mean": value.mean, "low": value.low, "high": value.high, "num": value.num}
            return value

        return {
            "name": self.name,
            "title": self.title,
            "about": self.about,
            "columns": list(self.columns),
            "rows": [[plain(value) for value in row] for row in self.rows],
        }
