"""`python benchmarks/page_speed.py --bundle BUNDLE`: how soon the page of a served bundle is there, and answers.

Starts `bentoml serve` of the bundle and a headless Chromium on this machine, and takes the times inside the browser, by
its own clock, so that the driver's polling is in none of them. Each round loads the page twice, with an empty cache
("cold") and with what the first load has left in it ("warm"), and then chooses samples. Times in seconds:
  load_s          from the navigation to the end of the load event
  first_answer_s  from the navigation to the answer about the first sample
  answer_s        from a click on a sample to the frame with its answer
  requests, bytes of a page load over the network, until it is quiet: bodies and headers, compressed as they come

Writes one JSON file and prints the table drawn from it.
"""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from serve_figures import circumstances, over_rounds, spread
from serve_process import service

from train import cli


QUIET_S = 1.0
"""A page load is over when nothing has been asked for so long."""
LIMIT_S = 60.0
KINDS = ("cold", "warm")
WATCH = """
new MutationObserver((changes, observer) => {
  if (!document.querySelector("#answer-card data.numbers")) return;
  observer.disconnect();
  window.firstAnswer = performance.now() / 1000;
}).observe(document, { childList: true, subtree: true });
"""
CHOOSE = """
const [index, done] = arguments;
const said = () => document.querySelector("#answer-card data.numbers")?.textContent;
const began = performance.now();
new MutationObserver((changes, observer) => {
  if (!said() || JSON.parse(said()).image !== `sample ${index}`) return;
  observer.disconnect();
  requestAnimationFrame(() => done((performance.now() - began) / 1000));
}).observe(document, { childList: true, subtree: true, characterData: true });
document.querySelectorAll("#samples button.thumbnail-item")[index].click();
"""
LOADED = "return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is timed."""

    bundle: Path = Path("runs/latest/bundle")
    """The bundle that is served; it has two samples or more."""
    rounds: int = 10
    """Times that the page is loaded, cold and warm."""
    clicks: int = 5
    """Samples that are chosen in a round."""
    set: tuple[str, ...] = ()
    """Settings of the service, as TSERVE_RUNNERS=2."""
    out: Path | None = None
    """The JSON file; default: results/page_speed-MODEL.json."""

    def __post_init__(self) -> None:
        for name in ("rounds", "clicks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if wrong := [entry for entry in self.set if "=" not in entry]:
            raise ValueError(f"set: expected NAME=VALUE, got {wrong[0]!r}")


def main(config: Config) -> dict[str, Any]:
    """Serve, load and click; write the JSON and return it. Raises ValueError for a bundle with too few samples."""
    from train.record import write_json

    about = json.loads((config.bundle / "bundle.json").read_text())
    samples = len(about["samples"])
    if samples < 2:
        raise ValueError(f"{config.bundle}: to choose between, the page needs 2 samples or more, there are {samples}")
    rounds = []
    settings = dict(entry.split("=", 1) for entry in config.set)
    with service(config.bundle, settings=settings) as server, chromium() as browser:
        url = f"http://127.0.0.1:{server.port}/ui/"
        load(browser, url, cold=True)  # the server's first page takes longer: it builds what it then keeps
        for number in range(config.rounds):
            rounds.append(one_round(browser, url, [1 + k % (samples - 1) for k in range(config.clicks)]))
            answer_s = over_rounds(rounds[-1]["answer_s"])
            print(f"round {number + 1}/{config.rounds}  click to answer {spread(answer_s)} s", flush=True)
        browsed = {"chromium": browser.capabilities["browserVersion"], "selenium": version("selenium")}
    content = {
        "settings": {k: v for k, v in cli.to_dict(config).items() if k not in ("bundle", "out")},
        "model": {key: about[key] for key in ("name", "T", "dataset", "precision", "checkpoint_sha256")},
        **circumstances(),
    }
    content["versions"] |= browsed | {"gradio": version("gradio")}
    content |= {"rounds": rounds, "summary": summary(rounds)}
    path = config.out or Path("results") / f"page_speed-{about['name']}.json"
    write_json(path, content)
    print(f"\n{table(content['summary'])}\nwritten: {path}")
    return content


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium that reaches this machine only; ValueError where there is none."""
    from selenium import webdriver

    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program, driver = next(filter(None, found), None), shutil.which("chromedriver")
    if not program or not driver:
        raise ValueError(f"no {'chromedriver' if program else 'chromium'} on PATH: install it")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1280,900")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.set_script_timeout(LIMIT_S)
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        yield browser
    finally:
        browser.quit()


def one_round(browser: Any, url: str, choices: Sequence[int]) -> dict[str, Any]:
    """Two loads and the clicks; a sample that is shown already is left out."""
    loads = {"cold": load(browser, url, cold=True), "warm": load(browser, url, cold=False)}
    answered, shown = [], 0
    for index in choices:
        index = 0 if index == shown else index
        answered.append(browser.execute_async_script(CHOOSE, index))
        shown = index
    return {**loads, "answer_s": answered}


def load(browser: Any, url: str, *, cold: bool) -> dict[str, float]:
    """Load the page, with an empty cache or with what is in it, and wait until the network is quiet."""
    browser.get("about:blank")
    if cold:
        browser.execute_cdp_cmd("Network.clearBrowserCache", {})
    browser.get_log("performance")
    browser.get(url)
    asked, received = set[str](), dict[str, float]()
    began = last = time.monotonic()
    first = None
    while first is None or time.monotonic() - last < QUIET_S:
        if time.monotonic() - began > LIMIT_S:
            raise RuntimeError(f"{url}: no answer was shown, or no quiet came, in {LIMIT_S:g} s")
        time.sleep(0.05)
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        if traffic(events, asked, received):
            last = time.monotonic()
        first = browser.execute_script("return window.firstAnswer ?? null")
    return {
        "load_s": browser.execute_script(LOADED),
        "first_answer_s": first,
        "requests": len(received),
        "bytes": sum(received.values()),
    }


def traffic(events: Sequence[dict[str, Any]], asked: set[str], received: dict[str, float]) -> int:
    """Add what the browser tells of requests over the network; returns how many such events there were.

    asked: ids of requests over HTTP. received: bytes by id; what came out of the cache is not in it.
    """
    count = 0
    for event in events:
        method, params = event["method"], event.get("params", {})
        id_ = params.get("requestId")
        if method == "Network.requestWillBeSent" and params["request"]["url"].startswith("http"):
            asked.add(id_)
            count += 1
        elif method == "Network.requestServedFromCache" or params.get("response", {}).get("fromDiskCache"):
            asked.discard(id_)
        elif method == "Network.loadingFinished" and id_ in asked:
            received[id_] = params["encodedDataLength"]
            count += 1
    return count


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, least and greatest of each figure."""
    names = ("load_s", "first_answer_s", "requests", "bytes")
    loads = {kind: {name: over_rounds([each[kind][name] for each in rounds]) for name in names} for kind in KINDS}
    return loads | {"answer_s": over_rounds([seconds for each in rounds for seconds in each["answer_s"]])}


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown."""
    rows = ["| | load, s | first answer, s | requests | MB |", "|---|---|---|---|---|"]
    for kind in KINDS:
        of = figures[kind]
        size = {key: value / 1e6 for key, value in of["bytes"].items()}
        times = f"{spread(of['load_s'])} | {spread(of['first_answer_s'])}"
        rows.append(f"| {kind} | {times} | {spread(of['requests'], 0)} | {spread(size, 2)} |")
    return "\n".join([*rows, "", f"from a click to the answer: {spread(figures['answer_s'])} s"])


def command(argv: list[str]) -> None:
    """Parse and run."""
    main(cli.parse(Config, argv=argv, prog="python benchmarks/page_speed.py", description=__doc__ or ""))


if __name__ == "__main__":
    sys.exit(cli.exit_status(lambda: command(sys.argv[1:])))
