"""Fixtures of tests that start drivers: a folder for Ray, and a lab whose MLflow is ready."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import Lab, make_database, make_lab


@pytest.fixture(scope="module")
def scratch() -> Iterator[str]:
    """A folder for Ray, whose sockets need a short path."""
    folder = tempfile.mkdtemp(prefix="os", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("mlflow") / "mlflow.db")


@pytest.fixture
def lab(tmp_path: Path, database: Path) -> Lab:
    return make_lab(tmp_path / "lab", database)
