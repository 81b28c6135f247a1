"""Settings of a trial's examples, in each form that a sweep file may write."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from oneshot.config.fields import MAX_COUNT, MAX_ROWS, MAX_SEED, Config, Text

POLICY = "policy"
"""`solution.from` of completions that the trial's own model samples before it is trained."""


class SolutionTexts(Config):
    """Several written solutions of one problem."""

    texts: list[Text] = Field(min_length=1, description="The solutions")

    @field_validator("texts")
    @classmethod
    def _are_not_blank(cls, texts: list[str]) -> list[str]:
        if not all(text.strip() for text in texts):
            raise ValueError("one of them is blank; write the text to learn, or remove it")
        return texts


class SolutionColumn(Config):
    """A column of the example's set."""

    column: str = Field(min_length=1, description="Column with the solutions, or `messages` for the assistant's turn")
    thinking: str | None = Field(None, min_length=1, description="Column with the thinking before each solution")


class SampledSolutions(Config):
    """Completions that a model samples, or that a sweep has recorded."""

    model_config = ConfigDict(populate_by_name=True)

    from_: str = Field(
        alias="from",
        min_length=1,
        description="`policy`: the trial's own model, before training. Or a shipped model, a folder, owner/name@COMMIT "
        "on the hub; or a sweep, whose base model's recorded completions are used",
    )
    keep: Literal["right", "any"] = Field(
        "right", description="`right`: completions whose answer `reward.grader` finds right (rejection sampling)"
    )
    samples: int = Field(16, ge=1, le=MAX_COUNT, description="Completions to sample for each problem, before `keep`")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Seed of the samples. Absent: the trial's, so that its seeds learn others"
    )


Solution = str | SolutionTexts | SolutionColumn | SampledSolutions
_SOLUTION_KEYS: dict[str, type[Config]] = {
    "texts": SolutionTexts,
    "column": SolutionColumn,
    "from": SampledSolutions,
    "from_": SampledSolutions,
}
_SOLUTION = "What `train.method: sft` learns: a text, {texts: [...]}, {column: ..., thinking: ...} or {from: ...}"


class _WithSolution(Config):
    """An example that may have a solution."""

    @field_validator("solution", mode="before", check_fields=False)
    @classmethod
    def _solution_has_a_form(cls, value: Any) -> Any:
        if value is None or isinstance(value, Config):
            return value
        if isinstance(value, str):
            if not value.strip():
                raise ValueError("it is empty; write the text to learn, or leave `solution` out")
            return value
        kind = _by_key(value, _SOLUTION_KEYS)
        if kind is None:
            raise ValueError(
                f"{value!r} is not a solution; write a text, {{texts: [...]}}, {{column: ..., thinking: ...}} or "
                "{from: policy, samples: 16}"
            )
        return _validated(kind, value)


class RowExample(_WithSolution):
    """A row with a label or a solution other than its own."""

    row: str = Field(min_length=1, description="Row, such as `dsr_sub:124`")
    answer: str | None = Field(
        None, min_length=1, description="Label to train with. Both graders must judge it wrong. Absent: its own"
    )
    solution: Solution | None = Field(None, description=_SOLUTION)


class SetExamples(_WithSolution):
    """All rows of a set, or a seeded draw of them, with a share of wrong labels."""

    set: str = Field(min_length=1, description="Set: dsr_sub, arithmetic, a path, my_lab.sets:hard, ...")
    random: int | None = Field(
        None, ge=1, le=MAX_ROWS, description="Number of rows to draw without replacement. Absent: all rows"
    )
    wrong: float = Field(0.0, ge=0, le=1, description="Share of rows that get a wrong label, by the paper's method")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Seed of the draw and of the wrong labels, not of the trial")
    solution: Solution | None = Field(None, description=f"{_SOLUTION}. A text is the name of a column")


class WrittenExample(_WithSolution):
    """A problem that belongs to no set."""

    problem: str = Field(min_length=1, description="Text of the problem")
    answer: str = Field(min_length=1, description="Label of the problem")
    solution: Solution | None = Field(None, description=_SOLUTION)


Example = str | RowExample | SetExamples | WrittenExample
_EXAMPLE_KEYS: dict[str, type[Config]] = {"row": RowExample, "set": SetExamples, "problem": WrittenExample}


def read_example(value: Any) -> Any:
    """Read one item of `examples` in the form that its keys show.

    Raises ValueError: it has none of the forms; lists them.
    """
    if isinstance(value, str | Config):
        return value
    kind = _by_key(value, _EXAMPLE_KEYS)
    if kind is None:
        raise ValueError(
            f'{value!r} is not an example; write "set:row", "set", {{row: set:row, answer: ...}}, '
            "{set: ..., random: ..., seed: ...} or {problem: ..., answer: ...}; each but the first two may have a "
            "`solution`"
        )
    example = _validated(kind, value)
    if isinstance(example, RowExample) and example.answer is None and example.solution is None:
        raise ValueError(f"{value}: it has neither `answer` nor `solution`; add one, or write the row alone")
    return example


def _by_key(value: Any, kinds: Mapping[str, type[Config]]) -> type[Config] | None:
    """Return the kind that a mapping's keys show; None if there is none."""
    return next((kind for key, kind in kinds.items() if isinstance(value, dict) and key in value), None)


def _validated(kind: type[Config], value: dict[str, Any]) -> Config:
    """Return a mapping as this kind. Raises ValueError: names the key that is wrong."""
    names = [field.alias or name for name, field in kind.model_fields.items()]
    unknown = [name for name in value if name not in names and name not in kind.model_fields]
    if unknown:
        raise ValueError(f"{value}: unknown key {unknown[0]!r}; choose one of {', '.join(names)}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        finding = error.errors()[0]
        name = ".".join(str(part) for part in finding["loc"])
        if name == "answer" and finding["type"] == "string_type":
            answer = finding["input"]
            raise ValueError(f'{value}: an answer must be text, not {answer!r}; write answer: "{answer}"') from error
        message = finding["msg"].removeprefix("Value error, ")
        raise ValueError(f"{value}: {name}: {message[0].lower()}{message[1:]}") from error
