"""A plan and the Ray that it is to run on -> whether every node can run it, before anything holds a GPU."""

import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from oneshot.errors import UserError
from oneshot.plan.plan import Plan, Trial
from oneshot.store.store import Folder, Store
from oneshot.sweep.cluster import probe
from oneshot.sweep.cluster.nodes import NodeType, bundle, check_feasible, fits, shapes
from oneshot.sweep.cluster.probe import Answer, Question
from oneshot.sweep.events import ANSWER_S, PASSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that was looked at."""

    check: str
    text: str
    is_bad: bool
    is_warning: bool = False

    def __str__(self) -> str:
        return f"{self.check}: {self.text}"


class PreflightError(UserError):
    """The cluster cannot run the sweep; one line for each finding."""


def preflight(plan: Plan, store: Store, *, reach: Callable[[], str], say: Callable[[str], None]) -> None:
    """Looks at everything, and says in one line what was found good.

    Raises:
        PreflightError: a line with its mend for each thing that is not as it must be.
    """
    found = findings(plan, store, reach=reach)
    for finding in found:
        if finding.is_warning:
            say(f"warning: {finding}")
    bad = [finding for finding in found if finding.is_bad]
    if bad:
        raise PreflightError("\n".join(f"preflight: {finding}" for finding in bad))
    good = ", ".join(dict.fromkeys(finding.check for finding in found if not finding.is_warning))
    say(f"{PASSED} ({good}; nodes: {sum(node['Alive'] for node in ray.nodes())})")


def findings(plan: Plan, store: Store, *, reach: Callable[[], str]) -> list[Finding]:
    """What there is to say of the cluster that this process has joined. `reach`: why MLflow cannot be used, if so.

    Raises:
        UserError: the driver itself cannot write the storage.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    token = secrets.token_hex(8)
    store.check_writable()
    store.scratch(token).write("driver", token)
    found = [_fit(plan.trials), _mlflow(reach())]
    try:
        answers, silent = _ask(nodes, plan.trials, storage=store.absolute, token=token)
        found += silent
        found += versions(answers)
        found += _storage(answers, store.scratch(token), token, root=store.root)
    finally:
        store.remove_scratch(token)
    if any(_held(node, plan.trials) for node in nodes):
        return [*found, *_models(answers), *_data(answers)]
    text = "no node is up yet that may hold a trial; they are looked for when one begins"
    return [*found, Finding(check="models and data", text=text, is_bad=False, is_warning=True)]


def _ask(
    nodes: Sequence[Mapping[str, object]], trials: Sequence[Trial], *, storage: str, token: str
) -> tuple[dict[str, Answer], list[Finding]]:
    """Node id -> its answer; and those that gave none."""
    cloudpickle.register_pickle_by_value(probe)
    try:
        ask = ray.remote(num_cpus=0, max_retries=0)(probe.ask)
        running = {
            ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=str(node["NodeID"]), soft=False)
            ).remote(asdict(_question(node, trials, storage=storage, token=token))): node
            for node in nodes
        }
    finally:
        cloudpickle.unregister_pickle_by_value(probe)
    ray.wait(list(running), num_returns=len(running), timeout=ANSWER_S)
    answers, silent = {}, []
    for reference, node in running.items():
        name = str(node["NodeManagerHostname"])
        try:
            answers[str(node["NodeID"])] = Answer(**ray.get(reference, timeout=0.1))
        except RayTaskError as error:
            text = f"{name}: looking failed ({_last_line(error)})"
            silent.append(Finding(check="nodes", text=text, is_bad=True))
        except (RayError, TimeoutError) as error:
            why = _last_line(error)
            text = f"{name}: no worker answered within {ANSWER_S:.0f} s ({why}); look at Ray's logs there"
            silent.append(Finding(check="nodes", text=text, is_bad=True))
    return answers, silent or [Finding(check="nodes", text="every node answers", is_bad=False)]


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _question(node: Mapping[str, object], trials: Sequence[Trial], *, storage: str, token: str) -> Question:
    those = [one for one in _held(node, trials) if one.config.script is None]
    configs = {one.config.model_dump_json(include={"examples", "prompt", "eval"}): one.config for one in those}
    return Question(
        working_directory=os.getcwd(),
        data_folder=os.environ.get("ONESHOT_DATA"),
        storage=storage,
        node=str(node["NodeID"]),
        token=token,
        models=tuple(dict.fromkeys((one.config.model.path, one.config.model.revision) for one in those)),
        configs=tuple(config.model_dump(mode="json") for config in configs.values()),
        needs_libraries=bool(those),
    )


def _held(node: Mapping[str, object], trials: Sequence[Trial]) -> list[Trial]:
    """Trials that a node may hold."""
    resources = node["Resources"]
    assert isinstance(resources, Mapping), "Ray tells what a node has"
    here = [NodeType(resources=resources, count=1)]
    return [one for one in trials if fits(bundle(one.resources, here), resources)]


def _fit(trials: Sequence[Trial]) -> Finding:
    try:
        check_feasible(trials, shapes())
    except UserError as error:
        return Finding(check="resources", text=str(error), is_bad=True)
    return Finding(check="resources", text="each trial fits a node", is_bad=False)


def _mlflow(why: str) -> Finding:
    return Finding(check="mlflow", text=why or "answers", is_bad=bool(why))


def versions(answers: Mapping[str, Answer]) -> list[Finding]:
    """Python's, Ray's and oneshot's must be one on all nodes; other libraries' should be."""
    found = []
    for name in dict.fromkeys(name for one in answers.values() for name in one.versions):
        has = {one.host: _comparable(name, one.versions[name]) for one in answers.values() if name in one.versions}
        missing = sorted(host for host, text in has.items() if text == "missing")
        if missing:
            text = f"{name} is not installed on {', '.join(missing)}; install it there, or use one image for all nodes"
            found.append(Finding(check="versions", text=text, is_bad=True))
        elif len(set(has.values())) > 1:
            must = name in ("python", "ray", "oneshot")
            text = f"{name} differs between nodes ({_tell(has)}); install one version, or use one image for all nodes"
            found.append(Finding(check="versions", text=text, is_bad=must, is_warning=not must))
    return found or [Finding(check="versions", text="equal", is_bad=False)]


def _comparable(name: str, text: str) -> str:
    """Of Python, the part that decides what can be shared; of others, all."""
    return ".".join(text.split(".")[:2]) if name == "python" else text


def _tell(has: Mapping[str, str]) -> str:
    """`2.60.0 on a, b and 4 more; 2.59.0 on c`."""
    parts = []
    for text, _ in Counter(has.values()).most_common():
        hosts = sorted(host for host, one in has.items() if one == text)
        more = f" and {len(hosts) - 2} more" if len(hosts) > 2 else ""
        parts.append(f"{text} on {', '.join(hosts[:2])}{more}")
    return "; ".join(parts)


def _storage(answers: Mapping[str, Answer], folder: Folder, token: str, *, root: str) -> list[Finding]:
    mend = "put it on a disk that all nodes share, or on an object store, and let the nodes' user write there"
    found = []
    for node, one in answers.items():
        why = one.storage
        if not why and one.versions["oneshot"] != "missing" and folder.read(node) != token:
            why = "what it wrote there does not reach the driver: it is another folder"
        if why:
            text = f"{root} on {one.host}: {why}; {mend}"
            found.append(Finding(check="storage", text=text, is_bad=True))
    return found or [Finding(check="storage", text="shared by every node", is_bad=False)]


def _models(answers: Mapping[str, Answer]) -> list[Finding]:
    found = []
    for path in dict.fromkeys(path for one in answers.values() for path in one.models):
        says = {one.host: one.models[path] for one in answers.values() if path in one.models}
        for host, text in says.items():
            if not text.startswith("ok"):
                mend = f"put it there, or set HF_HOME to a shared cache where `ray start` runs ({path})"
                found.append(Finding(check="models", text=f"{path} on {host}: {text}; {mend}", is_bad=True))
        if len({text for text in says.values() if text.startswith("ok")}) > 1:
            text = f"{path}: its files differ between nodes ({_tell(says)}); copy one folder to all"
            found.append(Finding(check="models", text=text, is_bad=True))
    return found or [Finding(check="models", text="at hand", is_bad=False)]


def _data(answers: Mapping[str, Answer]) -> list[Finding]:
    found = [
        Finding(check="data", text=f"on {one.host}: {one.data}; ONESHOT_DATA says where data lie", is_bad=True)
        for one in answers.values()
        if one.data
    ]
    return found or [Finding(check="data", text="at hand", is_bad=False)]


def here(plan: Plan, store: Store, *, reach: Callable[[], str]) -> list[Finding]:
    """The same of this machine alone, without Ray."""
    token = secrets.token_hex(8)
    everything = {"CPU": float("inf"), "GPU": float("inf"), "memory": float("inf")}
    node = {"NodeID": "here", "Resources": everything}
    trials = [replace(one, resources=one.resources.model_copy(update={"accelerator": None})) for one in plan.trials]
    try:
        store.check_writable()
    except UserError as error:
        return [Finding(check="storage", text=str(error), is_bad=True)]
    store.scratch(token).write("driver", token)
    try:
        answers = {"here": probe.answer(_question(node, trials, storage=store.absolute, token=token))}
        found = [_mlflow(reach()), *versions(answers), *_storage(answers, store.scratch(token), token, root=store.root)]
    finally:
        store.remove_scratch(token)
    return [*found, *_models(answers), *_data(answers)]
