"""Settings of a trial's examples, in each form that a sweep file may write."""

from typing import Any

from pydantic import Field, ValidationError

from oneshot.config.fields import MAX_ROWS, MAX_SEED, Config


class RowExample(Config):
    """A row with a label other than its own."""

    row: str = Field(min_length=1, description="Row, such as `dsr_sub:124`")
    answer: str = Field(min_length=1, description="Label to train with. Both graders must judge it wrong")


class SetExamples(Config):
    """All rows of a set, or a seeded draw of them, with a share of wrong labels."""

    set: str = Field(min_length=1, description="Set: dsr_sub, arithmetic, a path, ...")
    random: int | None = Field(
        None, ge=1, le=MAX_ROWS, description="Number of rows to draw without replacement. Absent: all rows"
    )
    wrong: float = Field(0.0, ge=0, le=1, description="Share of rows that get a wrong label, by the paper's method")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Seed of the draw and of the wrong labels, not of the trial")


class WrittenExample(Config):
    """A problem that belongs to no set."""

    problem: str = Field(min_length=1, description="Text of the problem")
    answer: str = Field(min_length=1, description="Label of the problem")


Example = str | RowExample | SetExamples | WrittenExample
_EXAMPLE_KEYS: dict[str, type[Config]] = {"row": RowExample, "set": SetExamples, "problem": WrittenExample}


def read_example(value: Any) -> Any:
    """Read one item of `examples` in the form that its keys show.

    Raises ValueError: it has none of the forms; lists them.
    """
    if isinstance(value, str | Config):
        return value
    kind = next((k for name, k in _EXAMPLE_KEYS.items() if isinstance(value, dict) and name in value), None)
    if kind is None:
        raise ValueError(
            f'{value!r} is not an example; write "set:row", "set", {{row: set:row, answer: ...}}, '
            "{set: ..., random: ..., seed: ...} or {problem: ..., answer: ...}"
        )
    unknown = [name for name in value if name not in kind.model_fields]
    if unknown:
        raise ValueError(f"{value}: unknown key {unknown[0]!r}; choose one of {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        finding = error.errors()[0]
        name = ".".join(str(part) for part in finding["loc"])
        if name == "answer" and finding["type"] == "string_type":
            answer = finding["input"]
            raise ValueError(f'{value}: an answer must be text, not {answer!r}; write answer: "{answer}"') from error
        raise ValueError(f"{value}: {name}: {finding['msg'].lower()}") from error
