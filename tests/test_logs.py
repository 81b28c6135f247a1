"""Logs that a machine reads, text that a terminal does not obey, and a log that is followed over a bad line."""

import io
import json
import logging

import pytest
from rich.console import Console

from oneshot.cli.progress import Progress
from oneshot.logs import JsonLines, json_line, printable
from oneshot.store.records import Result
from oneshot.sweep.cluster.jobs import _Tail, own_words
from oneshot.sweep.events import BEGIN, PASSED, Event


def test_a_record_is_one_line_of_json_with_its_facts() -> None:
    record = logging.LogRecord("oneshot.x", logging.WARNING, "f.py", 1, "two\nlines %d", (7,), None)
    record.created = 0.25
    assert json.loads(JsonLines(sweep="s", key="k", attempt=2).format(record)) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "warning",
        "logger": "oneshot.x",
        "message": "two\nlines 7",
        "sweep": "s",
        "key": "k",
        "attempt": 2,
    }
    assert "\n" not in JsonLines(sweep="s").format(record)


def test_what_is_not_known_is_left_out() -> None:
    assert set(json.loads(json_line("info", "m", time_s=0.0, key="", attempt=None))) == {"time", "level", "message"}


def test_the_drivers_events_are_lines_of_json_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESHOT_LOG", "json")
    out = io.StringIO()
    with Progress(Console(file=out, width=40), sweep="s") as progress:
        progress(Event(kind="message", text="x" * 100))
        progress(Event(kind="started", key="k", label="a"))
        progress(Event(kind="step", key="k", label="a", step=1))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["sweep"], line["message"], line.get("key")) for line in lines] == [
        ("s", "x" * 100, None),
        ("s", "a started", "k"),
    ]


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[31mred\x07\x9b\n\tb é") == "a\\x1b[31mred\\x07\\x9b\n\tb é"


def test_a_reason_with_control_characters_does_not_reach_the_terminal() -> None:
    out = io.StringIO()
    with Progress(Console(file=out, width=200), sweep="s") as progress:
        progress(Event(kind="message", text="\x1b]0;title\x07"))
    assert "\x1b" not in out.getvalue()


def test_the_end_of_a_training_shows_accuracy_and_how_long_the_rest_takes() -> None:
    result = Result(
        outcome="finished", attempt=1, steps_done=16, evaluations=frozenset(), reason="", traceback="",
        log_path="", checkpoint="none", started_ms=0, ended_ms=40_000,
    )  # fmt: skip
    out = io.StringIO()
    with Progress(Console(file=out, width=40), sweep="s") as progress:
        for key in ("a", "b"):
            progress(Event(kind="started", key=key, label=key, num_steps=16, num_left=4))
        progress(Event(kind="step", key="b", label="b", step=8, num_steps=16, num_left=4))
        # b has half of its steps left, and two wait; two run at a time: 2.5 x 40 s / 2
        ends = {"arithmetic": (0.25, 0.5), "later": (None, 0.125)}
        progress(Event(kind="ended", key="a", label="a", num_steps=16, num_left=3, result=result, accuracies=ends))
        progress(Event(kind="ended", key="b", label="b", num_steps=16, num_left=0, result=result))
    a, b = out.getvalue().splitlines()[2:]
    expected = "16 steps in 40 s, arithmetic 0.250 -> 0.500, later 0.125  [1 of 4 ended, about 50 s left]"
    assert a.endswith(f"a  finished: {expected}")
    assert b.endswith("b  finished: 16 steps in 40 s  [2 of 2 ended]")


LOG = ["Ray says this", BEGIN, "one", "Running entrypoint for job s-1: x", "two", "three"]


def test_a_drivers_own_words_are_what_is_shown() -> None:
    assert list(own_words(LOG)) == ["one", "two", "three"]


@pytest.mark.parametrize("cut", range(1, 90, 7))
def test_a_log_that_is_read_again_from_its_start_is_passed_on_once(cut: int) -> None:
    said: list[str] = []
    tail = _Tail(said.append, None)
    whole = "\n".join(LOG) + "\n"
    tail.begin()
    tail.take(whole[:cut])
    tail.begin()  # the line was cut; it is read from its start again, in other pieces
    for start in range(0, len(whole), 5):
        tail.take(whole[start : start + 5])
    tail.rest(whole + "last")
    assert said == ["one", "two", "three", "last"]


def test_following_ends_at_the_mark() -> None:
    said: list[str] = []
    tail = _Tail(said.append, PASSED)
    tail.begin()
    tail.take(f"{BEGIN}\na\n   3 s  {PASSED} (all)\nafter\n")
    assert said == ["a", f"   3 s  {PASSED} (all)"]
    assert tail.is_over
