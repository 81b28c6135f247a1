"""Settings of evaluations: suites, their sampling rules, and when they run."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from oneshot.config.fields import MAX_COUNT, MAX_ROWS, MAX_STEPS, MAX_TOKENS, Config, PartName, Step, Text
from oneshot.errors import nearest

TEMPLATES = ("auto", "chat", "plain", "qwen2.5-math", "qwen2.5", "r1-distill", "llama-3.2")
PROBLEM = "{problem}"
"""What makes a text a template: the problem goes in its place."""
GRADERS = ("strict", "released")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*(:[A-Za-z_][A-Za-z0-9_]*)?")


def is_text(template: str) -> bool:
    """Return whether a template is a text with a place for the problem, as opposed to a name."""
    return PROBLEM in template


def _text_or_name(template: str) -> str:
    """Return a template unchanged. Raises ValueError: it is neither a text with a problem nor like a name."""
    if not is_text(template) and not _NAME.fullmatch(template):
        raise ValueError(
            f"{template!r} has no {PROBLEM}, where the problem goes, and names no template"
            f"{nearest(template, TEMPLATES)}"
        )
    return template


Template = Annotated[
    str, AfterValidator(_text_or_name), WithJsonSchema({"anyOf": [{"enum": list(TEMPLATES)}, {"type": "string"}]})
]
"""A name of `TEMPLATES`, a text with `{problem}`, or a text of an installed package by its name."""
GraderName = PartName


def grader_label(name: str) -> str:
    """Return a grader's name in metrics: `exact` for `my_lab.graders:exact`."""
    return name.rpartition(":")[2]


class ThinkingConfig(Config):
    """A suite's budget of thinking (budget forcing: s1, arXiv 2501.19393)."""

    end: Text = Field("</think>", description="Text with which the model ends its thinking")
    max_tokens: int = Field(
        ge=1,
        le=MAX_TOKENS,
        description="Largest number of thinking tokens. Then `end` and `then` are appended, and the answer is sampled",
    )
    min_waits: int = Field(
        0, ge=0, le=MAX_COUNT, description="How many times an early end of thinking is replaced by `wait`"
    )
    wait: Text = Field("Wait", description="Text that replaces an early end of thinking")
    then: str = Field("Final Answer:", description="Text that asks for the answer, on a line after `end`")
    answer_tokens: int = Field(
        512, ge=1, le=MAX_TOKENS, description="Largest number of tokens in the answer, which thinking never uses"
    )


class SuiteConfig(Config):
    """An evaluation suite and its sampling rule."""

    source: str | None = Field(
        None,
        description="A known set, the path or URL of a .jsonl or .parquet file, or a function that returns rows "
        "(`package.module:name`, or a registered name). Absent: the built-in suite of that name",
    )
    num_problems: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="Number of problems: for each category of a generated set, or the first rows of a file",
    )
    samples: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Completions a problem (k of avg@k and pass@k). Absent: the number of the built-in suite, else 1",
    )
    temperature: float | None = Field(
        None, ge=0, le=10, description="Sampling temperature. 0: greedy. Absent: that of the built-in suite, else 0"
    )
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Largest number of tokens in a completion. Absent: rollout.max_tokens"
    )
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Draw only the fewest most likely tokens whose probability reaches it. Absent: 1, all tokens",
    )
    stop: list[Text] = Field(
        default_factory=list,
        description="Texts that end a completion. The graded text leaves out the stop text and what follows it",
    )
    thinking: ThinkingConfig | None = Field(
        None, description="Limit the tokens of thinking, and then ask for the answer (budget forcing)"
    )
    every_steps: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="Steps between evaluations. Absent: eval.every_steps"
    )
    also_at: list[Step] = Field(default_factory=list, description="Further steps at which this suite is evaluated")
    suffix: str | None = Field(None, description="Text added to its problems. Absent: prompt.eval_suffix")
    template: Template | None = Field(
        None, description="Template of its prompts. Absent: prompt.eval_template, else prompt.template"
    )

    @field_validator("thinking")
    @classmethod
    def _sets_length_and_end(cls, thinking: ThinkingConfig | None, info: ValidationInfo) -> ThinkingConfig | None:
        if thinking is not None and info.data.get("max_tokens") is not None:
            raise ValueError(
                "the suite also sets max_tokens; remove it, since a completion has up to thinking.max_tokens + "
                "thinking.answer_tokens"
            )
        if thinking is not None and info.data.get("stop"):
            raise ValueError("the suite also sets stop; remove it, since thinking.end is where its thinking stops")
        return thinking


SuiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\- ]+$")]


_TAKEN = (*GRADERS, "lenient")


class EvalConfig(Config):
    """The steps and suites of evaluations. Every suite is also evaluated after the last step."""

    every_steps: int = Field(
        20, ge=1, le=MAX_STEPS, description="Steps between evaluations, for suites that do not set it"
    )
    also_at: list[Step] = Field(default_factory=list, description="Further steps at which every suite is evaluated")
    at_start: bool = Field(True, description="Evaluate before step 1. `gain` is measured from this evaluation")
    graders: list[GraderName] = Field(
        default_factory=lambda: list(GRADERS),
        description="Graders whose verdicts are recorded. `strict` is always one of them, since `pass_at_1` is its "
        "accuracy; with `released`, reports show how often the two disagree. Your own, such as "
        "`my_lab.graders:exact`, has the accuracy `pass_at_1_exact`",
    )
    suites: dict[SuiteName, SuiteConfig] = Field(default_factory=dict, description="Suite name -> its sampling rule")

    @field_validator("graders")
    @classmethod
    def _with_strict(cls, graders: list[GraderName]) -> list[GraderName]:
        if "strict" not in graders:
            raise ValueError("strict is missing; pass_at_1 is its accuracy, so add it")
        own = sorted({name for name in graders if name not in GRADERS})
        labels = [grader_label(name) for name in own]
        for place, label in enumerate(labels):
            if label in _TAKEN or label.isdecimal() or label in labels[:place]:
                raise ValueError(
                    f"{own[place]}: pass_at_1_{label} is another measure, too; give the grader another name"
                )
        return [*(name for name in GRADERS if name in graders), *own]  # the order has no meaning
