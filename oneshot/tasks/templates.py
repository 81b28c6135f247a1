"""A trial's templates -> the same trial with the text of each template that an installed package has.

From then on the trial is complete: its key, its workers and its report need the text, not the package.
"""

from collections.abc import Iterator
from functools import cache

from oneshot.config.evaluation import PROBLEM, TEMPLATES, is_text
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError
from oneshot.tasks import foreign


def foreign_templates(config: TrialConfig) -> Iterator[tuple[str, str]]:
    """Yield the path and the name of each template that is neither ours nor a text."""
    named = {"prompt.template": config.prompt.template, "prompt.eval_template": config.prompt.eval_template}
    named |= {f"eval.suites.{name}.template": suite.template for name, suite in config.eval.suites.items()}
    yield from ((path, name) for path, name in named.items() if name and name not in TEMPLATES and not is_text(name))


def template_call(name: str) -> str:
    """Return `package.module:NAME` of a template. Raises DataError: there is no such template; names the nearest."""
    return foreign.resolve(name, "templates", built_in=TEMPLATES)


def template_text(name: str) -> str:
    """Return the text of a package's template.

    Raises DataError: there is no such template, or it is not a text with `{problem}`.
    """
    call = template_call(name)
    return _text(call, foreign.find(call).digest)


@cache
def _text(call: str, _digest: str) -> str:
    text = foreign.value(call)
    if not isinstance(text, str) or not is_text(text):
        raise DataError(f"{call}: is {text!r:.80}, not a text with {PROBLEM}; write it as one")
    return text


def with_texts(config: TrialConfig) -> TrialConfig:
    """Return a trial with texts in place of names. Raises DataError as `template_text` does; names the setting."""
    texts = {}
    for path, name in foreign_templates(config):
        try:
            texts[path] = template_text(name)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    if not texts:
        return config
    of_prompt = {path.partition(".")[2]: text for path, text in texts.items() if path.startswith("prompt.")}
    suites = {
        name: suite.model_copy(update={"template": texts.get(f"eval.suites.{name}.template", suite.template)})
        for name, suite in config.eval.suites.items()
    }
    return config.model_copy(
        update={
            "prompt": config.prompt.model_copy(update=of_prompt),
            "eval": config.eval.model_copy(update={"suites": suites}),
        }
    )
