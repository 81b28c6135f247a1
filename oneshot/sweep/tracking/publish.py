"""A report -> the sweep's folder in the store, and its parent run in MLflow."""

from oneshot.errors import first_line
from oneshot.plan.sweep_run import SweepRun
from oneshot.report.page import KEPT, Report


def keep_report(report: Report, sweep_run: SweepRun) -> str:
    """Write the report into the sweep's folder; return the path."""
    folder = sweep_run.folder
    for name, text in report.files.items():
        folder.write(f"{KEPT}/{name}", text)
    return f"{folder.path}/{KEPT}"


def publish_report(report: Report, sweep_run: SweepRun) -> str:
    """Show the report in MLflow; return why that failed, or an empty string."""
    location = sweep_run.mlflow()
    from oneshot.sweep.tracking.run_data import claim_metrics
    from oneshot.sweep.tracking.tracker import Tracker  # MLflow takes seconds to import

    try:
        tracker = Tracker(sweep_run.plan, sweep_run.store, location)
        if not tracker.has_parent:
            return "the sweep has no run there"
        tracker.describe(report.description)
        tracker.measure(claim_metrics(report.judged))
        tracker.publish(report.files)
    except Exception as error:  # server, network or disk: the report is in the store and can be shown again
        return first_line(error)
    return ""
