"""The fixture of tests that look at pages: a browser, which a module's tests share."""

from collections.abc import Iterator

import pytest
from browser import Browser, started, why_not


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser; the tests that need it are skipped where there is none."""
    if reason := why_not():
        pytest.skip(reason)
    with started() as made:
        yield made
