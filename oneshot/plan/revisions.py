"""A sweep with hub models named by branch or tag -> the same sweep with their commits, so that keys name contents.

The sweep's folder records the commits when the sweep first runs, so that a later push does not change it.
"""

from dataclasses import replace

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from oneshot.config.file import SweepFile
from oneshot.errors import ModelError
from oneshot.plan.keys import needs_commit
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan
from oneshot.store.folder import Folder

FILE = "revisions.json"

UNREACHABLE: tuple[type[Exception], ...] = tuple(
    base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)
)
"""Errors of the hub's client. Its versions use different HTTP libraries, whose error its own error inherits from."""


def resolve(path: str, revision: str | None) -> str:
    """Return the current commit hash of a hub model's branch or tag.

    Raises ModelError: the model or revision does not exist, or the hub cannot be reached.
    """
    try:
        commit = HfApi().model_info(path, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            f"model.path: {path}@{revision or 'main'} is not on the hub, or you have no access; check the name, or log "
            "in with `hf auth login`"
        ) from error
    except UNREACHABLE as error:
        raise ModelError(
            f"model.path: {path}: cannot get the commit of {revision or 'main'} from the hub "
            f"({type(error).__name__}); set model.revision to a commit hash, or model.path to a local folder"
        ) from error
    assert commit is not None, "the hub returns a commit for every revision"
    return commit


def frozen_revisions(sweep: SweepFile, folder: Folder) -> PinnedSweep:
    """Return the sweep with the commits that were resolved when it first ran."""
    recorded = folder.read_json(FILE) or []
    return replace(PinnedSweep.of(sweep), revisions={(path, revision): commit for path, revision, commit in recorded})


def pin_revisions(sweep: PinnedSweep, plan: Plan, folder: Folder) -> PinnedSweep:
    """Return the sweep with a commit for every revision that its trials wait for, and record the commits."""
    waiting = {(t.config.model.path, t.config.model.revision) for t in plan.trials if needs_commit(t.config)}
    if not waiting:
        return sweep
    commits = sweep.revisions | {model: resolve(*model) for model in sorted(waiting, key=str)}
    folder.write_json(FILE, sorted([*model, commit] for model, commit in commits.items()))
    return replace(sweep, revisions=commits)
