"""What a notebook shows: figures as pictures, and a bar for a run: the share of all trainings' steps that is done."""

from typing import TYPE_CHECKING, Any

from tqdm import auto

if TYPE_CHECKING:
    from oneshot.sweep.events import Event


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def show_figures() -> None:
    """In a notebook, show a figure that ends a cell as a picture, unless the user has chosen a backend."""
    if not is_notebook():
        return
    from IPython import get_ipython
    from matplotlib.figure import Figure

    shell = get_ipython()
    try:
        shell.display_formatter.formatters["image/png"].lookup_by_type(Figure)
    except KeyError:
        shell.enable_matplotlib("inline")


class NotebookProgress:
    """A context manager that shows a bar, and is called with each event of a run."""

    def __init__(self, *, sweep: str) -> None:
        bar: Any = auto.tqdm  # another class in a notebook than on a terminal
        self._bar = bar(total=None, desc=sweep, unit="trial", bar_format="{desc}: {bar} {n:.1f} of {total} {postfix}")
        self._shares: dict[str, float] = {}  # key of a training that runs -> share of its steps that is done
        self._num_ended = 0

    def __enter__(self) -> "NotebookProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, event: "Event") -> None:
        """Show one event."""
        if event.kind == "message":
            if event.text:
                self._bar.set_postfix_str(event.text)
        elif event.kind == "ended":
            self._shares.pop(event.key, None)
            self._num_ended += 1
            if event.result is not None and event.result.outcome == "failed":
                self._bar.write(f"{event.label} failed: {event.result.reason}")
        else:
            self._shares[event.key] = event.step / max(1, event.num_steps)
            self._bar.set_postfix_str(event.label)
        if event.num_left or self._num_ended:
            self._bar.total = self._num_ended + event.num_left
        self._bar.n = round(self._num_ended + sum(self._shares.values()), 2)
        self._bar.refresh()
