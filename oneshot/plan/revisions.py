"""Hub models named by branch or tag -> the same sweep with their commits, so that a trial key names contents.

What a branch stood for when a sweep first ran is kept in the sweep's folder: a push later changes nothing.
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

# the hub client's HTTP library differs between its versions; the base of its own error is that library's
_UNREACHABLE = tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))


def resolve(path: str, revision: str | None) -> str:
    """The commit hash that a hub model's branch or tag stands for now.

    Raises:
        ModelError: there is no such model or revision, or the hub cannot be reached.
    """
    try:
        commit = HfApi().model_info(path, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(f"model.path: {path}@{revision or 'main'}: not on the hub, or not for you to see") from error
    except _UNREACHABLE as error:
        raise ModelError(
            f"model.path: {path}: the hub cannot be asked for the commit of {revision or 'main'} "
            f"({type(error).__name__}); set model.revision to a commit hash, or model.path to a local folder"
        ) from error
    assert commit is not None, "the hub gives a commit of every revision"
    return commit


def frozen_revisions(sweep: SweepFile, folder: Folder) -> PinnedSweep:
    """The sweep with the commits that were resolved when it first ran."""
    known = folder.read_json(FILE) or []
    return replace(PinnedSweep.of(sweep), revisions={(path, revision): commit for path, revision, commit in known})


def pin_revisions(sweep: PinnedSweep, plan: Plan, folder: Folder) -> PinnedSweep:
    """The sweep with every moving revision that its trials wait for resolved, and frozen in its folder."""
    waiting = {(t.config.model.path, t.config.model.revision) for t in plan.trials if needs_commit(t.config)}
    if not waiting:
        return sweep
    commits = sweep.revisions | {model: resolve(*model) for model in sorted(waiting, key=str)}
    folder.write_json(FILE, sorted([*model, commit] for model, commit in commits.items()))
    return replace(sweep, revisions=commits)
