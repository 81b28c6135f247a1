"""Trials and cells -> warnings: settings without effect, odd resources, and trials that do not fit their GPUs."""

import json
from collections.abc import Sequence

from oneshot.config.trial import TrialConfig
from oneshot.models.memory import Memory
from oneshot.models.placement import GPU_GIB, Placement, alternatives, choose_strategy, host_gib
from oneshot.models.shapes import model_shape
from oneshot.models.source import local_folder, reached_positions
from oneshot.plan.cells import Cell
from oneshot.plan.keys import inert_paths
from oneshot.plan.trial import Trial
from oneshot.tasks import sets
from oneshot.tasks.benchmarks import GENERATED, DueEvaluations, due_evaluations, load_suites
from oneshot.tasks.examples import present_examples
from oneshot.tasks.labels import label_warnings, row_warnings
from oneshot.tasks.solutions import is_sampled, num_demonstrations


def inert_settings(config: TrialConfig) -> list[str]:
    """Return a warning for each stated setting that has no effect on this trial."""
    reasons = {
        "loss.clip_low": "with train.updates_per_rollout 1, because the ratio is always 1",
        "reward.probability": "unless reward.kind is random",
        "advantage.normalize_std": "with advantage.baseline none",
        "advantage.eps": "without division by a standard deviation of a group",
        "critic.coef": "unless critic.share is body",
        "critic.clip": "with train.updates_per_rollout 1, because values are those before the update",
    }
    reasons |= {f"loss.{name}": reasons["loss.clip_low"] for name in ("clip_high", "ratio", "surrogate")}
    reasons["rollout.vllm"] = "unless rollout.engine is vllm"
    inert = set(inert_paths(config)) - {"rollout.kv_gib"}
    if config.rollout.engine == "auto":
        inert.discard("rollout.vllm")
    warnings = [f"{path} has no effect {reasons[path]}" for path in sorted(inert) if _is_set(config, path)]
    if config.model.revision is not None and local_folder(config.model.path) is not None:
        warnings.append(
            f"model.revision has no effect: {config.model.path} is a folder, which is identified by its contents"
        )
    init = config.model.init
    if init is not None and init.reference == "model" and not config.has_reference:
        warnings.append("model.init.reference has no effect without a KL term (loss.kl_coef: 0)")
    if config.rollout.engine == "hf" and _is_set(config, "rollout.kv_gib"):
        warnings.append("rollout.kv_gib has no effect with rollout.engine hf")
    return warnings


_OF_GRPO: tuple[str, ...] = (
    "advantage",
    "critic",
    "reward",
    *(f"loss.{name}" for name in ("ratio", "surrogate", "clip_low", "clip_high", "mask_truncated")),
    *(f"loss.{name}" for name in ("kl_coef", "entropy_coef", "pg_coef")),
    "rollout.resample",
    "rollout.num_groups",
    "rollout.group_size",
    "train.updates_per_rollout",
)
_OF_SFT: tuple[str, ...] = ("train.batch_size", "train.max_length", "train.too_long", "prompt.thinking")


def of_other_method(configs: Sequence[TrialConfig]) -> list[str]:
    """Return a warning for each stated setting of a training method that no trial uses."""
    methods = {config.train.method for config in configs if config.script is None}
    if len(methods) != 1:
        return []
    (method,) = methods
    paths = _OF_GRPO if method == "sft" else _OF_SFT
    if method == "sft" and any(is_sampled(config.examples) for config in configs):
        paths = tuple(path for path in paths if path != "reward")  # the grader chooses what is kept
    stated = [path for path in paths if any(_is_set(config, path) for config in configs)]
    given = (example.solution for config in configs for example in config.examples if not isinstance(example, str))
    if method == "grpo" and any(solution is not None for solution in given):
        stated.append("solution of an example")
    return [f"{path} has no effect with train.method {method}" for path in stated]


def repeated_seeds(cells: Sequence[Cell]) -> list[str]:
    """Return a warning for SFT cells whose seeds make one training: each step learns all solutions, in any order."""
    names = [cell.label for cell in cells if cell.waits_for is None and _is_without_seed(cell.config)]
    if not names:
        return []
    more = ", ..." if len(names) > 3 else ""
    return [
        f"seeds repeat one training, since each step learns all its solutions: lower train.batch_size or sample the "
        f"solutions ({', '.join(names[:3])}{more})"
    ]


def _is_without_seed(config: TrialConfig) -> bool:
    if config.train.method != "sft" or not config.train.num_steps or config.model.adapter is not None:
        return False
    number = num_demonstrations(config.examples)
    return number is not None and number <= config.train.batch_size


def _is_set(config: TrialConfig, path: str) -> bool:
    section, _, name = path.partition(".")
    if not name:
        return section in config.model_fields_set
    return name in getattr(config, section).model_fields_set


def too_large(trials: Sequence[Trial]) -> list[str]:
    """Return a warning for each set of cells that does not fit its GPUs for one reason, with a hint."""
    cells: dict[tuple[str, str, str], list[str]] = {}
    hints: dict[tuple[Memory, str], str] = {}
    # one trial of each cell and need: the seeds of a cell need the same, the points of a search may not
    distinct_trials = {(tuple(t.cell.values()), t.placement and t.placement.memory): t for t in reversed(trials)}
    for trial in distinct_trials.values():
        need, model = trial.placement, trial.config.model.path
        if need is None or need.fits:
            continue
        gib, usable = need.memory.peak_gib, need.usable_gib
        has = "and has" if trial.resources.is_packed else "which has"
        needs = f"about {gib:.0f} GiB of a GPU ({need.strategy}), {has} {usable:.0f} usable"
        if (need.memory, model) not in hints:
            fitting = [other for other in alternatives(trial.config, trial.resources) if other.fits]
            hints[need.memory, model] = _fitting_hint(trial, fitting)
        cells.setdefault((needs, hints[need.memory, model], model), []).insert(0, "/".join(trial.cell.values()))
    warnings = []
    for (needs, hint, model), names in cells.items():
        distinct = [name or "the only cell" for name in dict.fromkeys(names)]
        more = ", ..." if len(distinct) > 3 else ""
        warnings.append(f"{model} needs {needs}; {hint} ({', '.join(distinct[:3])}{more})")
    return warnings


def _fitting_hint(trial: Trial, others: Sequence[Placement]) -> str:
    """Return what to set so that the trial fits: the smallest share, the fewest GPUs, or an adapter."""
    same = [other for other in others if other.adapter == trial.config.model.adapter]
    settings = []
    if same:
        stated = trial.resources.strategy
        strategy = "" if stated in ("auto", same[0].strategy) or same[0].strategy == "single" else ", strategy: auto"
        found = same[0].resources
        share = f"gpu_gib: {found.gpu_gib:g}" if found.is_packed else f"gpus: {found.gpus:g}{strategy}"
        settings.append(f"resources: {{{share}}}")
    if len(same) < len(others):
        settings.append("model.adapter: {kind: lora}")
    if settings:
        return f"set {' or '.join(settings)}"
    return "lower train.microbatch_tokens, or set train.activation_checkpointing and rollout.kv_gib"


def odd_resources(cells: Sequence[Cell]) -> list[str]:
    """Return warnings for placement settings without effect, and for too few cores or too little host memory."""
    several = [cell for cell in cells if cell.resources.processes > 1]
    warnings = []
    if short := [cell for cell in several if cell.resources.cpus < cell.resources.processes]:
        need = short[0].resources
        warnings.append(
            f"resources.cpus: {need.processes} processes share {need.cpus:g} cores; set cpus to {need.processes} or "
            f"more ({short[0].label})"
        )
    unknown = {name for cell in cells for name in cell.resources.accelerator or () if name not in GPU_GIB}
    if unknown and any(cell.resources.gpus and cell.resources.gpu_gib is None for cell in cells):
        warnings.append(
            f"resources.accelerator: the memory of {', '.join(sorted(unknown))} is unknown, so the estimate does not "
            "check it; set resources.gpu_gib"
        )
    for cell in cells:
        loaded, stated = host_gib(cell.config, cell.resources), cell.resources.memory_gib
        if loaded is not None and stated is not None and stated < loaded:
            number = cell.resources.processes
            loads = f"{number} processes load" if number > 1 else "a trial loads"
            warnings.append(
                f"resources.memory_gib: {stated:g}, but {loads} about {loaded:.0f} GiB of weights at the start; set "
                f"more ({cell.label})"
            )
            break
    if not several and any(cell.resources.strategy != "auto" for cell in cells):
        warnings.append(
            "resources.strategy has no effect: every trial is one process; set resources.gpus or num_processes"
        )
    offloads = [cell for cell in cells if cell.resources.cpu_offload]
    if offloads and all(choose_strategy(cell.config, cell.resources) != "fsdp" for cell in offloads):
        warnings.append("resources.cpu_offload has no effect: it needs strategy fsdp, which no trial uses")
    return warnings


def odd_suites(cells: Sequence[Cell]) -> list[str]:
    """Return a warning for each suite with a setting that has no effect, or a budget beyond the model's positions."""
    suites = [(suite, cell.config.eval.suites[suite.name]) for cell in cells for suite in load_suites(cell.config)]
    greedy = {suite.name for suite, rule in suites if suite.temperature == 0 and rule.top_p not in (None, 1.0)}
    warnings = [f"eval.suites.{name}.top_p has no effect at temperature 0" for name in sorted(greedy)]
    for cell in cells:
        shape = model_shape(cell.config) if cell.config.script is None else None
        if shape is None or shape.max_positions is None:
            continue
        most = reached_positions(cell.config.model, shape.max_positions)
        warnings += [
            f"eval.suites.{suite.name}.thinking: a budget of {suite.thinking.max_tokens} and an answer of "
            f"{suite.thinking.answer_tokens} tokens are longer than the {most} positions of {cell.config.model.path}, "
            "so the budget shrinks"
            for suite in load_suites(cell.config)
            if suite.thinking is not None and suite.max_tokens > most
        ]
    return list(dict.fromkeys(warnings))


def odd_rows(cells: Sequence[Cell]) -> list[str]:
    """Return warnings for labels that no answer can satisfy, and for repeated problems, as far as they are here."""
    suites = {(suite.source, suite.num_problems): suite for cell in cells for suite in load_suites(cell.config)}
    warnings = []
    for (source, _), suite in suites.items():
        if source not in GENERATED and sets.is_here(source):
            warnings += [*label_warnings(source, suite.problems), *row_warnings(source, suite.problems)]
    named = {
        json.dumps([cell.config.train.method, cell.config.model_dump(mode="json")["examples"]]): cell
        for cell in cells
        if cell.waits_for is None
    }
    for cell in named.values():
        if cell.config.script is None:
            problems = present_examples(cell.config.examples)
            if cell.config.train.method == "grpo":  # SFT learns texts, whatever the labels
                warnings += label_warnings("examples", problems)
            warnings += row_warnings("examples", problems)
    return list(dict.fromkeys(warnings))


def coinciding(trials: Sequence[Trial]) -> list[str]:
    """Return a warning for each two cells whose differences have no effect on training or evaluation."""
    first_trials: dict[tuple[str, DueEvaluations], Trial] = {}
    warnings = []
    for trial in trials:
        if trial.key is not None and trial.seed == trials[0].seed:  # one seed is enough to compare cells
            earlier = first_trials.setdefault((trial.key, due_evaluations(trial.config)), trial)
            if earlier is not trial:
                both = f"{earlier.label} and {trial.label}"
                warnings.append(f"{both} are the same trial: their differences have no effect")
    return warnings
