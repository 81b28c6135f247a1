"""The trial store, in a folder or under an fsspec URL: the record that every other part of oneshot reads.

<root>/trials/<key>/   trial.json              the training
                       attempts/<n>.json       who ran it, when, on what; creating it takes the training (lease.py)
                       lease                   the last attempt's heartbeat
                       metrics/<attempt>-<first step>.jsonl    segments of steps
                       evaluations/<suite digest>-<step>.json  the metrics of each evaluation
                       rollouts/<name>.json.gz completions: of evaluations, and samples of training steps
                       checkpoint/<id>/        weights, optimiser, step; checkpoint.json points to the current one
                       best/<id>/              weights of the best step (checkpoint.keep); best.json points to them
                       log/<attempt>.txt
                       result.json             the result of the last attempt that ended; written last
<root>/sweeps/<name>/  sweep.yaml  claims.json  plan.json  report/  attempts/  lease
"""

import posixpath
import uuid
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from oneshot.errors import UserError
from oneshot.store.folder import OBJECT_STORES, Folder
from oneshot.store.trial_folder import TrialFolder


class Store:
    """A trial store at a folder or fsspec URL."""

    def __init__(self, root: str) -> None:
        # other processes' files must appear at once; only object stores cache listings, or know the option
        options = {"use_listings_cache": False} if root.partition("://")[0] in OBJECT_STORES else {}
        try:
            self.fs, path = fsspec.core.url_to_fs(root, **options)
        except ImportError as error:
            raise UserError(f"storage: {root}: {error} (on every machine that runs trials)") from error
        except ValueError as error:
            raise UserError(f"storage: {root}: {error}") from error
        self.path = path.rstrip("/")
        self.root = root
        if self.is_local:
            self._check_is_folder()

    @property
    def is_local(self) -> bool:
        """Return whether it is a folder of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def _check_is_folder(self) -> None:
        """Refuse a file where the store, or a folder on the way to it, would be."""
        path = Path(self.path)
        found = next((place for place in (path, *path.parents) if place.exists()), path)
        if found.exists() and not found.is_dir():
            raise UserError(f"storage: {self.root}: {found} is a file; name a folder")

    def check_exists(self) -> None:
        """Check that there is a store to read. Raises UserError: there is none."""
        if self.is_local and not Path(self.path).is_dir():
            raise UserError(f"storage: {self.root}: no such folder; name the --storage of a sweep that has run")

    @property
    def absolute(self) -> str:
        """Return the root as a process in another working directory finds it."""
        return str(Path(self.path).resolve()) if self.is_local else self.root

    def trial(self, key: str) -> TrialFolder:
        """Return the folder of one training."""
        return TrialFolder(self.fs, posixpath.join(self.path, "trials", key))

    def trainings(self) -> list[str]:
        """Return the keys of all recorded trainings."""
        return Folder(self.fs, self.path).list("trials")

    def sweeps(self) -> list[str]:
        """Return the names of all recorded sweeps."""
        return Folder(self.fs, self.path).list("sweeps")

    def sweep(self, name: str) -> Folder:
        """Return the folder of one sweep."""
        return Folder(self.fs, posixpath.join(self.path, "sweeps", name))

    def scratch(self, name: str) -> Folder:
        """Return a temporary folder, which `remove_scratch` removes."""
        return Folder(self.fs, posixpath.join(self.path, f".scratch-{name}"))

    def remove_scratch(self, name: str) -> None:
        """Remove a folder that `scratch` named."""
        Folder(self.fs, self.path).remove(f".scratch-{name}")

    def check_writable(self) -> None:
        """Check that a file can be created, replaced and removed.

        Raises UserError: the storage cannot be written, or has no exclusive creation.
        """
        probe = Folder(self.fs, self.path)
        name = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            probe.create(name, "")
            is_exclusive = not probe.create(name, "")
            probe.write(name, "new")
            probe.remove(name)
        except OSError as error:
            hint = (
                "choose a folder that this user may write, on a disk with free space"
                if self.is_local
                else "check its address, the bucket, and the credentials in the environment"
            )
            raise UserError(f"storage: {self.root}: cannot be written: {error}; {hint}") from error
        if not is_exclusive:
            raise UserError(
                f"storage: {self.root}: cannot be used: it overwrites files that must be created exclusively, so two "
                "processes could take one trial; choose a store that refuses (S3's If-None-Match)"
            )
