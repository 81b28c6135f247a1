"""Hub models named by branch or tag -> the same sweep with their commits, so that a trial key names contents."""

from dataclasses import replace

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

from oneshot.errors import ModelError
from oneshot.plan import Plan
from oneshot.sweepfile import Sweep


def resolve(path: str, revision: str | None) -> str:
    """The commit hash that a hub model's branch or tag stands for now.

    Raises:
        ModelError: there is no such model or revision, or the hub cannot be reached.
    """
    try:
        commit = HfApi().model_info(path, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(f"model.path: {path}@{revision or 'main'}: not on the hub, or not for you to see") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"model.path: {path}: the hub cannot be asked for the commit of {revision or 'main'} "
            f"({type(error).__name__}); set model.revision to a commit hash, or model.path to a local folder"
        ) from error
    assert commit is not None, "the hub gives a commit of every revision"
    return commit


def pin_revisions(sweep: Sweep, plan: Plan) -> Sweep:
    """The sweep with every moving revision that its trials wait for pinned."""
    waiting = {(t.config.model.path, t.config.model.revision) for t in plan.trials if t.waits_for is not None}
    commits = {model: resolve(*model) for model in sorted(waiting, key=str)}
    return replace(sweep, revisions={**sweep.revisions, **commits})
