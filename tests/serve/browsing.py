"""The page in a browser: its controls as a visitor uses them, and what it shows as plain numbers."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


WAIT_S = 30.0
READY = "#answer-card, #answer [role=alert]"
SLIDE = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}));"


@dataclass(frozen=True)
class Browsing:
    """A page that is open in a browser; `driver` is selenium's."""

    driver: Any
    url: str

    def open(self, query: str = "") -> None:
        """Load the page anew and wait until it shows an answer and its samples."""
        self.driver.get("about:blank")
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(self.url + query)
        self.until(lambda: self.all(READY) and self.all("#samples button.thumbnail-item"))

    @contextlib.contextmanager
    def on_a_laptop(self) -> Iterator[Self]:
        """The page is open; at the end no other host was asked for anything, and the browser has no complaint."""
        self.resize(1280, 800)
        self.open()
        yield self
        assert {url.split("/")[2] for url in self.requested()} == {self.url.split("/")[2]}
        assert self.complaints() == []

    def all(self, selector: str) -> list[Any]:
        """The elements that a CSS selector names."""
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        """The one that can be seen."""
        (element,) = (element for element in self.all(selector) if element.is_displayed())
        return element

    def run(self, script: str, *arguments: Any) -> Any:
        """What JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any]) -> Any:
        """What the condition gives once it holds; elements may come and go meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException

        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                if found := condition():
                    return found
                state = ""
            except (StaleElementReferenceException, LookupError, ValueError, AssertionError) as error:
                state = f": {error!r}"
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not come to hold in {WAIT_S:g} s{state}; the page says {self.alerts()}")
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click on the one element that can be seen."""
        self.one(selector).click()

    def sample(self, index: int) -> None:
        """Choose a sample and wait for its answer."""
        self.all("#samples button.thumbnail-item")[index].click()
        self.until(lambda: self.answer["image"] == f"sample {index}")

    def tab(self, key: str) -> None:
        """Open one of the tabs with figures."""
        self.click(f"#tab-{key}-button")

    def source(self, name: str) -> None:
        """Open one of the tabs that images come from."""
        next(tab for tab in self.all("#sources [role=tab]") if tab.text == name).click()

    def slide(self, selector: str, value: float) -> None:
        """Move a slider of Gradio's there, in one go."""
        (track,) = self.all(f"{selector} input[type=range]")
        self.run(SLIDE, track, value)

    def go(self, t: int) -> None:
        """Move the slider of the steps there."""
        self.run(SLIDE, self.one("#step-range"), t)

    def choose(self, menu: str, name: str) -> None:
        """Choose an entry of a drop-down list."""
        self.click(f"#{menu} input")
        option = self.until(lambda: [each for each in self.all("[role=option]") if each.text.endswith(name)])
        option[0].click()

    def key(self, *keys: str) -> None:
        """Press keys while nothing has the focus."""
        from selenium.webdriver import ActionChains

        self.run("document.activeElement.blur()")
        ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def answer(self) -> Any:
        """The numbers behind the answer; KeyError while there is none."""
        return self.numbers("#answer-card")

    def figure(self, id: str) -> Any:
        """The numbers behind a figure; KeyError while there is no such figure."""
        return self.numbers(f"figure#{id}")

    def numbers(self, selector: str) -> Any:
        """What stands in plain numbers inside an element."""
        told = self.run("return document.querySelector(arguments[0])?.textContent", f"{selector} data.numbers")
        if told is None:
            raise KeyError(selector)
        return json.loads(told)

    def words(self, id: str) -> list[str]:
        """The texts of a figure's picture that can be seen now."""
        script = (
            "return [...document.querySelectorAll(`figure#${arguments[0]} svg text`)]"
            ".filter((text) => text.getClientRects().length).map((text) => text.textContent)"
        )
        return list(self.run(script, id))

    def said(self) -> str:
        """The words of the answer that can be seen now."""
        return str(self.one("#answer-card .words .at").text)

    def alerts(self) -> list[str]:
        """The sentences that tell of an error."""
        return [alert.text for alert in self.all("[role=alert]") if alert.is_displayed()]

    @property
    def step(self) -> int:
        """The step that is looked at."""
        return int(self.run("return document.body.dataset.t"))

    def requested(self) -> set[str]:
        """Every http(s) and ws(s) URL that the browser asked for since the page was opened or this was asked."""
        urls = set()
        for entry in self.driver.get_log("performance"):
            params = json.loads(entry["message"])["message"].get("params", {})
            urls |= {params.get("request", {}).get("url", ""), params.get("url", "")}
        return {url for url in urls if url.startswith(("http", "ws"))}

    def complaints(self) -> list[str]:
        """Errors in the browser's console since the page was opened or this was asked."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def delay(self, seconds: float) -> None:
        """So much later, every answer of the server arrives."""
        line = {"offline": False, "latency": 1e3 * seconds, "downloadThroughput": -1, "uploadThroughput": -1}
        self.driver.execute_cdp_cmd("Network.enable", {})
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", line)

    def resize(self, width: int, height: int) -> None:
        """Show the page on a screen of so many pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def downloads_to(page: Browsing, folder: Path) -> Callable[[str], bytes]:
    """Let the browser save files into `folder`; gives what waits for a file and reads it."""
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})

    def content(name: str) -> bytes:
        page.until(lambda: (folder / name).is_file() and (folder / name).stat().st_size)
        return (folder / name).read_bytes()

    return content
