"""Results of checks, as `doctor` and the preflight show them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    check: str
    text: str
    is_bad: bool
    is_warning: bool = False

    def __str__(self) -> str:
        return f"{self.check}: {self.text}"
