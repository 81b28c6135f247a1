"""The public names -> docs/api.md: `python docs/api.py`."""

import inspect
import sys
from typing import Any

import oneshot

INTRODUCTION = """\
# Python API

`import oneshot` takes a tenth of a second: torch, Ray and MLflow are imported when they are used. The
names on this page are public. They change only with a line in the changelog; everything else may
change at any time. Errors are those of the command line, with the same places and hints.

```python
import oneshot

sweep = oneshot.load_sweep("quickstart")  # a file, or a shipped sweep
sweep.plan().trials()  # runs nothing
lab = sweep.run()  # or later: lab = oneshot.open("quickstart")
lab.verdicts()
lab.cells()
lab.figure("curves")
```

Tables are pandas DataFrames. Each begins with the trial: its axes as `cell.<axis>`, `seed` and `key`.
"""


def signatures() -> dict[str, str]:
    """Return the signature of every public function, class and method, by its name."""
    found = {}
    for name in oneshot.__all__:
        value = getattr(oneshot, name)
        if inspect.isclass(value) and not issubclass(value, Exception):
            found[name] = "class"
            for member, method in _members(value):
                found[f"{name}.{member}"] = "property" if isinstance(method, property) else _signature(method)
        elif callable(value):
            found[name] = "error" if inspect.isclass(value) else _signature(value)
    return found


def _members(value: type) -> list[tuple[str, Any]]:
    return [(name, member) for name, member in vars(value).items() if not name.startswith("_")]


def _signature(value: Any) -> str:
    if isinstance(value, classmethod):
        value = value.__func__
    if not callable(value):  # a cached property
        return "property"
    text = str(inspect.signature(value))
    return text.replace("(self, ", "(").replace("(self)", "()").replace("(cls, ", "(")


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    for name, signature in signatures().items():
        owner, _, member = name.partition(".")
        value = getattr(oneshot, owner)
        doc = inspect.getdoc(vars(value)[member] if member else value) or ""
        if signature == "class" or signature == "error":
            parts.append(f"## `{name}`\n\n{doc}\n")
        else:
            shown = f"{name}{'' if signature == 'property' else signature}"
            parts.append(f"{'###' if member else '##'} `{name}`\n\n```python\n{shown}\n```\n\n{doc}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
