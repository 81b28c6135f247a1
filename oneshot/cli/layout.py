"""What every table of the command line shares."""

from collections.abc import Sequence

from rich.table import Table


def plain_table(texts: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    """Return an empty table without borders: text columns first, then right-aligned numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in texts:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def size(num_bytes: int) -> str:
    """Return a number of bytes in the largest unit that fits."""
    amount, unit = float(num_bytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, bigger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
