"""Measure the report of a sweep of 500 synthetic trials: `python bench/report.py [NUM_TRIALS] [--profile]`.

It prints the seconds, and their ratio to the time for reading the store's files.
"""

import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from builders import sweep_run
from synthetic import make_store

from oneshot.plan.claims import freeze
from oneshot.report.page import make_report
from oneshot.report.runs import gather

TEXT = """\
version: 1
name: five-hundred
question: How long does a report take?
trial:
  prompt: {{template: plain, train_suffix: ""}}
  rollout: {{num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}}
  train.num_steps: 100
  eval: {{every_steps: 20, suites: {{arithmetic: {{num_problems: 40}}}}}}
axes:
  model:
    tiny-qwen2: {{set: {{model.path: "tiny:qwen2"}}}}
    tiny-llama: {{set: {{model.path: "tiny:llama"}}}}
  example:
{examples}
  arm: {{outcome: {{}}, format: {{set: {{reward.kind: format}}}}}}
seeds: [0, 1, 2, 3, 4]
claims:
  - name: beats base
    metric: eval/arithmetic/pass_at_1
    a: {{arm: outcome, at: last}}
    b: {{at: start}}
    for_each: [model, example]
    expect: {{greater_by: 0.0}}
  - name: more than format
    metric: eval/arithmetic/pass_at_1
    of: gain
    a: {{arm: outcome}}
    b: {{arm: format}}
    for_each: [model]
    expect: {{greater_by: 0.0}}
"""


def main() -> None:
    """Make the store, then the report."""
    num_trials = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    examples = "\n".join(
        f'    sum{number}: {{set: {{examples: ["arithmetic:{20 + number}+38"]}}, labels: {{category: addition}}}}'
        for number in range(num_trials // 20)
    )
    with tempfile.TemporaryDirectory() as folder:
        sweep, plan, store = make_store(Path(folder), TEXT.format(examples=examples))
        freeze(store.sweep(plan.name), sweep.config.claims)
        files = [path for path in Path(store.path).rglob("*") if path.is_file()]
        start_s = time.perf_counter()
        num_bytes = sum(len(path.read_bytes()) for path in files)
        reading_s = time.perf_counter() - start_s
        profile = cProfile.Profile() if "--profile" in sys.argv else None
        start_s = time.perf_counter()
        if profile:
            profile.enable()
        gathered = gather(sweep_run(sweep, plan, store))
        gathered_s = time.perf_counter() - start_s
        report = make_report(gathered)
        whole_s = time.perf_counter() - start_s
        if profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("cumulative").print_stats(40)
    print(f"{len(plan.trials)} trials, {len(files)} files, {num_bytes / 2**20:.0f} MiB, {len(report.judged)} verdicts")
    print(f"files read: {reading_s:.1f} s; gathered: {gathered_s:.1f} s; whole report: {whole_s:.1f} s")
    print(f"page: {len(report.files['report.html']) / 2**20:.1f} MiB")
    print(f"ratio to reading the files: {whole_s / reading_s:.0f}")


if __name__ == "__main__":
    main()
