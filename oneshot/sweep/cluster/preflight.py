"""A plan and a Ray cluster -> whether every node can run the plan, before any trial holds a GPU."""

import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from oneshot.errors import UserError
from oneshot.models.engines import version_fault
from oneshot.plan.plan import Plan
from oneshot.plan.trial import Trial
from oneshot.store.folder import Folder
from oneshot.store.store import Store
from oneshot.sweep.cluster import probe
from oneshot.sweep.cluster.fit import NodeType, can_hold, check_feasible
from oneshot.sweep.cluster.nodes import live_types
from oneshot.sweep.cluster.probe import Answer, Question
from oneshot.sweep.events import ANSWER_S, PASSED
from oneshot.sweep.findings import Finding


def _findings(check: str, bad: Sequence[str], *, good: str) -> list[Finding]:
    """Return a finding for each text that says what is bad, or one that says that all is well."""
    found = [Finding(check=check, text=text, is_bad=True) for text in bad]
    return found or [Finding(check=check, text=good, is_bad=False)]


def preflight(plan: Plan, store: Store, *, reach: Callable[[], str], say: Callable[[str], None]) -> None:
    """Check everything; report warnings, and in one line the checks that passed.

    Raises UserError: has a line with a fix for each check that failed.
    """
    findings = check_nodes(plan, store, reach=reach)
    for finding in findings:
        if finding.is_warning:
            say(f"warning: {finding}")
    bad = [finding for finding in findings if finding.is_bad]
    if bad:
        raise UserError("\n".join(f"preflight: {finding}" for finding in bad))
    good = ", ".join(dict.fromkeys(finding.check for finding in findings if not finding.is_warning))
    say(f"{PASSED} ({good}; nodes: {sum(node['Alive'] for node in ray.nodes())})")


def check_nodes(plan: Plan, store: Store, *, reach: Callable[[], str]) -> list[Finding]:
    """Check the cluster that this process has joined. `reach` returns why MLflow cannot be used, or nothing.

    Raises UserError: the driver itself cannot write the storage.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    token = secrets.token_hex(8)
    store.check_writable()
    store.scratch(token).write("driver", token)
    findings = [_fit(plan.trials), _mlflow(reach())]
    try:
        answers, silent = _ask(nodes, plan.trials, storage=store.absolute, token=token)
        findings += silent
        findings += check_versions(answers)
        findings += _storage(answers, store.scratch(token), token, root=store.root)
    finally:
        store.remove_scratch(token)
    if any(_held(node, plan.trials) for node in nodes):
        return [*findings, *_models(answers), *_data(answers)]
    text = "no node that can run a trial is up yet; they are checked when a trial begins"
    return [*findings, Finding(check="models and data", text=text, is_bad=False, is_warning=True)]


def _ask(
    nodes: Sequence[Mapping[str, object]], trials: Sequence[Trial], *, storage: str, token: str
) -> tuple[dict[str, Answer], list[Finding]]:
    """Return the answers by node id, and a finding for each node that gave none and has not left meanwhile."""
    cloudpickle.register_pickle_by_value(probe)
    try:
        # the second try on a node that died meanwhile ends when Ray knows of the death
        ask = ray.remote(num_cpus=0, max_retries=1)(probe.ask)
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
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    for reference, node in running.items():
        name = str(node["NodeManagerHostname"])
        try:
            answers[str(node["NodeID"])] = Answer(**ray.get(reference, timeout=0.1))
        except RayTaskError as error:
            silent.append(f"{name}: the check failed ({_last_line(error)})")
        except (RayError, TimeoutError) as error:
            if node["NodeID"] not in alive:
                continue
            why = _last_line(error)
            silent.append(f"{name}: no worker answered within {ANSWER_S:.0f} s ({why}); see Ray's logs on that node")
    return answers, _findings("nodes", silent, good="every node answers")


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _question(node: Mapping[str, object], trials: Sequence[Trial], *, storage: str, token: str) -> Question:
    trained = [trial for trial in _held(node, trials) if trial.config.script is None]
    configs = {t.config.model_dump_json(include={"examples", "prompt", "eval", "train"}): t.config for t in trained}
    return Question(
        working_directory=os.getcwd(),
        data_folder=os.environ.get("ONESHOT_DATA"),
        storage=storage,
        node=str(node["NodeID"]),
        token=token,
        models=tuple(dict.fromkeys((trial.config.model.path, trial.config.model.revision) for trial in trained)),
        configs=tuple(config.model_dump(mode="json") for config in configs.values()),
        needs_libraries=bool(trained),
        needs_vllm=any(trial.config.rollout.engine == "vllm" for trial in trained),
    )


def _held(node: Mapping[str, object], trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that a node has the resources for."""
    resources = node["Resources"]
    assert isinstance(resources, Mapping), "Ray reports resources as a mapping"
    here = [NodeType(resources=resources, count=1)]
    return [trial for trial in trials if can_hold(here, trial.resources)]


def _fit(trials: Sequence[Trial]) -> Finding:
    try:
        check_feasible(trials, live_types())
    except UserError as error:
        return Finding(check="resources", text=str(error), is_bad=True)
    return Finding(check="resources", text="each trial fits a node", is_bad=False)


def _mlflow(why: str) -> Finding:
    return Finding(check="mlflow", text=why or "answers", is_bad=bool(why))


def check_versions(answers: Mapping[str, Answer]) -> list[Finding]:
    """Check that all nodes have the same Python, Ray and oneshot, and a usable vLLM; warn if other libraries differ."""
    findings = []
    faults = {a.host: version_fault(a.versions["vllm"]) for a in answers.values() if "vllm" in a.versions}
    for fault in dict.fromkeys(fault for fault in faults.values() if fault):
        hosts = ", ".join(sorted(host for host, text in faults.items() if text == fault))
        findings.append(Finding(check="versions", text=f"on {hosts}: {fault}", is_bad=True))
    for name in dict.fromkeys(name for answer in answers.values() for name in answer.versions):
        most = 2 if name == "python" else None  # only major and minor must agree
        has = {a.host: ".".join(a.versions[name].split(".")[:most]) for a in answers.values() if name in a.versions}
        missing = sorted(host for host, text in has.items() if text == "missing")
        if name == "vllm" and any(faults.values()):
            continue
        if missing:
            text = f"{name} is not installed on {', '.join(missing)}; install it there, or use one image for all nodes"
            findings.append(Finding(check="versions", text=text, is_bad=True))
        elif len(set(has.values())) > 1:
            must = name in ("python", "ray", "oneshot", "vllm")
            text = f"{name} differs between nodes ({_tell(has)}); install one version, or use one image for all nodes"
            findings.append(Finding(check="versions", text=text, is_bad=must, is_warning=not must))
    return findings or [Finding(check="versions", text="equal", is_bad=False)]


def _tell(has: Mapping[str, str]) -> str:
    """Return `2.60.0 on a, b and 4 more; 2.59.0 on c`."""
    parts = []
    for text, _ in Counter(has.values()).most_common():
        hosts = sorted(host for host, version in has.items() if version == text)
        more = f" and {len(hosts) - 2} more" if len(hosts) > 2 else ""
        parts.append(f"{text} on {', '.join(hosts[:2])}{more}")
    return "; ".join(parts)


def _storage(answers: Mapping[str, Answer], folder: Folder, token: str, *, root: str) -> list[Finding]:
    hint = "use a disk that all nodes share, or an object store, and give the nodes' user write access"
    bad = []
    for node, answer in answers.items():
        reason = answer.storage
        if not reason and answer.versions["oneshot"] != "missing" and folder.read(node) != token:
            reason = "the driver cannot see what this node wrote: it is another folder"
        if reason:
            bad.append(f"{root} on {answer.host}: {reason}; {hint}")
    return _findings("storage", bad, good="shared by every node")


def _models(answers: Mapping[str, Answer]) -> list[Finding]:
    bad = []
    for path in dict.fromkeys(path for answer in answers.values() for path in answer.models):
        states = {answer.host: answer.models[path] for answer in answers.values() if path in answer.models}
        for host, text in states.items():
            if not text.startswith("ok"):
                hint = f"copy it there, or set HF_HOME to a shared cache where `ray start` runs ({path})"
                bad.append(f"{path} on {host}: {text}; {hint}")
        if len({text for text in states.values() if text.startswith("ok")}) > 1:
            bad.append(f"{path}: its files differ between nodes ({_tell(states)}); copy one folder to all of them")
    return _findings("models", bad, good="available")


def _data(answers: Mapping[str, Answer]) -> list[Finding]:
    hint = "set ONESHOT_DATA to the folder of the data"
    bad = [f"on {answer.host}: {answer.data}; {hint}" for answer in answers.values() if answer.data]
    return _findings("data", bad, good="available")


def check_here(plan: Plan, store: Store, *, reach: Callable[[], str]) -> list[Finding]:
    """Check this machine alone, without Ray."""
    token = secrets.token_hex(8)
    everything = {"CPU": float("inf"), "GPU": float("inf"), "memory": float("inf")}
    node = {"NodeID": "here", "Resources": everything}
    trials = [
        replace(t, resources=t.resources.model_copy(update={"accelerator": None, "gpu_gib": None})) for t in plan.trials
    ]
    try:
        store.check_writable()
    except UserError as error:
        return [Finding(check="storage", text=str(error), is_bad=True)]
    store.scratch(token).write("driver", token)
    try:
        answers = {"here": probe.answer(_question(node, trials, storage=store.absolute, token=token))}
        storage = _storage(answers, store.scratch(token), token, root=store.root)
    finally:
        store.remove_scratch(token)
    return [_mlflow(reach()), *check_versions(answers), *storage, *_models(answers), *_data(answers)]
