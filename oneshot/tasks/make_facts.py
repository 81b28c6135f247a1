"""Known sets' files -> the digests and the `val` rows that ship: `python -m oneshot.tasks.make_facts`.

Writes `tasks/facts/<set>.sha256` (per row the sha256 of prompt and of answer) and `tasks/facts/val.json`: 200 rows of
dsr_sub, drawn with a fixed seed from the rows that have no alias, appear once, have a label that can be graded, and
resemble no problem of a test suite.
"""

import json
import random
from collections import Counter

from oneshot.tasks import sets
from oneshot.tasks.duplicates import near_duplicates
from oneshot.tasks.examples import aliases
from oneshot.tasks.grading import grade
from oneshot.tasks.problems import load_file

WITH_DIGESTS = ("dsr_sub", "math500", "aime24", "aime25", "amc23")
TEST_SUITES = WITH_DIGESTS[1:]
NUM_VAL = 200
KNOWN_NEAR = {708: "OlympiadBench's problem 65"}  # near duplicates of sets that have no shipped digests


def draw_val() -> list[int]:
    """Draw the rows of `val`, sorted."""
    prompts = {name: [p.prompt for p in load_file(str(sets.local_path(name)))] for name in WITH_DIGESTS}
    rows = prompts["dsr_sub"]
    tested = [prompt for name in TEST_SUITES for prompt in prompts[name]]
    times = Counter(rows)
    excluded = {row for row, prompt in enumerate(rows) if times[prompt] > 1}
    excluded |= {int(str(alias["row"]).partition(":")[2]) for alias in aliases().values()}
    excluded |= {*near_duplicates(rows, tested), *KNOWN_NEAR}
    labels = [problem.answer for problem in load_file(str(sets.local_path("dsr_sub")))]
    excluded |= {
        row for row, label in enumerate(labels) if not label or grade(f"\\boxed{{{label}}}", label).strict is not True
    }
    return sorted(random.Random("val 0").sample([row for row in range(len(rows)) if row not in excluded], NUM_VAL))


def main() -> None:
    """Write the files."""
    for name in WITH_DIGESTS:
        lines = [" ".join(problem.content) for problem in load_file(str(sets.local_path(name)))]
        (sets.FACTS / f"{name}.sha256").write_text("\n".join(lines) + "\n")
    val = {"of": "dsr_sub", "made_by": "python -m oneshot.tasks.make_facts", "rows": draw_val()}
    (sets.FACTS / "val.json").write_text(json.dumps(val) + "\n")


if __name__ == "__main__":
    main()
