"""A page's address -> the page as a person sees it, in headless Chromium driven by Selenium; Debian's packages.

The browser reaches this machine alone, and keeps the address of all that it asks for.
"""

import base64
import importlib.util
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
WAIT_S = 60.0
"""For what takes a second, on a machine that is busy with other things."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
LOCAL = ("file:", "data:", "blob:", "about:", "chrome:", "chrome-error:")
"""Addresses that ask no network."""


def why_not() -> str:
    """Why there can be no browser here; empty where there can."""
    if importlib.util.find_spec("selenium") is None:
        return "Selenium is not installed: pip install -e '.[dev]'"
    missing = [path for path in (CHROMIUM, DRIVER) if shutil.which(path) is None]
    return f"not installed: {', '.join(missing)} (Debian: chromium, chromium-driver)" if missing else ""


class Browser:
    """One window. `driver` is Selenium's, for what has no name here."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._console: list[dict[str, Any]] = []
        self._asked: list[str] = []

    def open(self, address: str | Path) -> None:
        """Goes to a URL or a file, and forgets what pages before it said and asked for."""
        self._drain()
        self._console.clear()
        self._asked.clear()
        self.driver.get(address if isinstance(address, str) else address.resolve().as_uri())

    @property
    def text(self) -> str:
        """What is to be read on the page."""
        return str(self.run("return document.body.innerText"))

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page; what it returns."""
        return self.driver.execute_script(script, *arguments)

    def all(self, css: str) -> list[Any]:
        """Every element of a selector, as Selenium's."""
        return list(self.driver.find_elements("css selector", css))

    def until(self, there: Callable[[], T], what: str, *, timeout_s: float = WAIT_S) -> T:
        """Waits for something to be there, and gives it; elements that go while they are looked at are not there."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                if found := there():
                    return found
            except (NoSuchElementException, StaleElementReferenceException):
                pass
            if time.monotonic() > deadline_s:
                errors = "\n".join(self.console_errors())
                raise AssertionError(f"{what} does not come; the page says:\n{self.text[:3000]}\n{errors}")
            time.sleep(0.1)

    def wait_for(self, text: str, *, timeout_s: float = WAIT_S) -> None:
        """Waits for a text to be on the page, however its words are broken into lines."""
        self.until(lambda: text in " ".join(self.text.split()), f"{text!r}", timeout_s=timeout_s)

    def find(self, css: str, *, text: str = "", timeout_s: float = WAIT_S) -> Any:
        """Waits for the first visible element of a selector that has a text in it."""
        return self.until(
            lambda: next((one for one in self.all(css) if one.is_displayed() and text in one.text), None),
            f"{css} with {text!r}",
            timeout_s=timeout_s,
        )

    def click(self, css: str, *, text: str = "") -> None:
        """Clicks on what `find` finds, once nothing lies over it."""
        from selenium.common.exceptions import ElementNotInteractableException, StaleElementReferenceException

        def clicked() -> bool:
            try:
                self.find(css, text=text).click()
            except (ElementNotInteractableException, StaleElementReferenceException):
                return False
            return True

        self.until(clicked, f"a click on {css} with {text!r}")

    def screenshot(self, path: Path | str, *, whole: bool = False) -> None:
        """Writes what is seen as PNG; `whole`: of the page, not of the window alone."""
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": whole, "format": "png"})
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def emulate(self, *, scheme: Literal["light", "dark", ""] = "", media: Literal["screen", "print", ""] = "") -> None:
        """Shows pages as a person sees them who likes light or dark ones, or as they are printed; bare: as usual."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def resize(self, width: int, height: int) -> None:
        """Gives the page a size in CSS pixels, as narrow as a telephone's if need be; 0, 0: the window's own."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def console_errors(self) -> list[str]:
        """What the console has of errors since `open`: exceptions, and things that could not be loaded."""
        self._drain()
        return [entry["message"] for entry in self._console if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Every address that was asked for since `open`, whether or not it answered."""
        self._drain()
        return list(self._asked)

    def network_requests(self) -> list[str]:
        """Of these, those that are no file and not in the page itself."""
        return [address for address in self.requests() if not address.startswith(LOCAL)]

    def _drain(self) -> None:
        """The driver tells its logs once."""
        self._console += self.driver.get_log("browser")
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._asked.append(message["params"]["request"]["url"])


@contextmanager
def started(*, width: int = 1400, height: int = 1000) -> Iterator[Browser]:
    """A browser with a profile of its own, until it is no longer needed."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    # Selenium's manager would look for drivers in the net, and tell of it
    quiet = {"SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}
    folder = tempfile.mkdtemp(prefix="osb", dir="/tmp")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={folder}/profile"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(executable_path=DRIVER, env={**os.environ, **quiet, "HOME": folder, "TMPDIR": folder})
    try:
        driver = webdriver.Chrome(options=options, service=service)
        try:
            driver.execute_cdp_cmd("Network.enable", {})
            yield Browser(driver)
        finally:
            driver.quit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
