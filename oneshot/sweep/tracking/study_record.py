"""The record of a finished study -> the parent run: its points as JSON, its figures, and its winner as tags."""

import re
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient

from oneshot.plan.studies import FOLDER, Study
from oneshot.sweep.search.points import read_points
from oneshot.sweep.tracking.run_data import tag_name


def log_study(client: MlflowClient, run_id: str, study: Study, record: Mapping[str, Any]) -> None:
    """Write a study's points, winner and figures to a run."""
    from oneshot.sweep.search.optuna_study import figures  # Optuna takes seconds to import

    path = f"{FOLDER}/{re.sub('[^A-Za-z0-9_.+]+', '-', study.name)}"
    client.log_dict(run_id, dict(record), f"{path}/study.json")
    metric, mode = record["objective"]["metric"], record["objective"]["mode"]
    for name, figure in figures(study.space, read_points(record), mode, metric=metric).items():
        client.log_figure(run_id, figure, f"{path}/{name}.png")
    if record["winner"] is not None:
        for setting, value in record["points"][record["winner"]]["params"].items():
            client.set_tag(run_id, tag_name(f"winner.{study.name}.{setting}"), str(value))
