"""A report -> the sweep's folder in the store, and its parent run in MLflow."""

from oneshot.config.file import Sweep
from oneshot.plan.plan import Plan
from oneshot.report.page import Report
from oneshot.store.store import Store
from oneshot.sweep.run import mlflow_location

FOLDER = "report"


def keep_report(report: Report, plan: Plan, store: Store) -> str:
    """Puts the report beside the sweep's records; returns where."""
    folder = store.sweep(plan.name)
    for name, text in report.files.items():
        folder.write(f"{FOLDER}/{name}", text)
    return f"{folder.path}/{FOLDER}"


def publish_report(report: Report, sweep: Sweep, plan: Plan, store: Store) -> str:
    """Shows the report in MLflow; returns why it could not, empty where it could."""
    uri, artifacts = mlflow_location(sweep, store)
    from oneshot.sweep.tracking.tracker import Tracker  # MLflow takes seconds to import

    try:
        tracker = Tracker(
            plan,
            store,
            tracking_uri=uri,
            experiment=sweep.config.mlflow.experiment or plan.name,
            artifacts=artifacts,
        )
        if not tracker.has_parent:
            return "the sweep has no run there"
        tracker.describe(report.description)
        tracker.publish(report.files)
    except Exception as error:  # server, network or disk: the report is kept, and can be shown again
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""
