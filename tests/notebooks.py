"""A notebook of docs/notebooks, executed in a folder."""

from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT


def executed(name: str, folder: Path, *, timeout_s: int = 400) -> list[dict[str, Any]]:
    """The outputs of a notebook's cells, run in a folder. A cell that fails raises."""
    nbformat = pytest.importorskip("nbformat", reason="notebooks are executed with nbclient")
    nbclient = pytest.importorskip("nbclient", reason="notebooks are executed with nbclient")
    notebook = nbformat.read(PROJECT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=timeout_s, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]
