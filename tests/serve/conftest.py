"""The bundle that the tests serve, the server as a process of its own, and a browser; each started once."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Browsing
from serving_process import running
from synthetic import write_bundle

from serve.predictor import Predictor


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic bundle; tests must not change it."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A bundle that the test may break."""
    return write_bundle(tmp_path / "bundle", samples=2)


@pytest.fixture(scope="session")
def serve_env(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `bentoml serve` serves `bundle_dir`, away from the user's BentoML home."""
    home = str(tmp_path_factory.mktemp("bentoml"))
    return os.environ | {"TSERVE_BUNDLE": str(bundle_dir), "BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True"}


@pytest.fixture(scope="session")
def server(serve_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a running `bentoml serve`, started as a user starts it: from the repository root, no service named."""
    log = tmp_path_factory.mktemp("server") / "log"
    with running("bentoml", "serve", "--host", "127.0.0.1", env=serve_env, ready="/readyz", log=log) as url:
        yield url


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic bundle of digits in two precisions, on whose page there is everything; tests must not change it."""
    folder = tmp_path_factory.mktemp("digits") / "bundle"
    return write_bundle(folder, precisions=("fp32", "int8"), labels="0123", samples=10)


@pytest.fixture(scope="session")
def digits_server(
    digits_dir: Path, serve_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a running `bentoml serve` of it."""
    folder = tmp_path_factory.mktemp("digits-server")
    # A home of its own: a server that starts removes the metrics of every other one there.
    env = serve_env | {"TSERVE_BUNDLE": str(digits_dir), "BENTOML_HOME": str(folder / "bentoml")}
    with running("bentoml", "serve", "--host", "127.0.0.1", env=env, ready="/readyz", log=folder / "log") as url:
        yield url


@pytest.fixture(scope="session")
def page_alone(digits_dir: Path, serve_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a running `python -m serve.demo BUNDLE`."""
    log = tmp_path_factory.mktemp("demo") / "log"
    with running("serve.demo", str(digits_dir), env=serve_env, ready="/", log=log) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium that can reach this machine only, with a camera that is none, and logs what it asks for."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(f"no {'chromedriver' if chromium else 'chromium'} on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    for flag in (*flags, *camera, nowhere):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="session")
def fp32(digits_dir: Path) -> Predictor:
    """What the pages of `digits_dir` show at first."""
    return Predictor(digits_dir)


@pytest.fixture
def page(digits_server: str, browser: Any) -> Iterator[Browsing]:
    """The service's page, on a laptop; afterwards nobody else was asked for anything, and nothing went wrong."""
    with Browsing(browser, f"{digits_server}/ui/").on_a_laptop() as page:
        yield page


@pytest.fixture
def alone(page_alone: str, browser: Any) -> Iterator[Browsing]:
    """The same, of the page without the service."""
    with Browsing(browser, f"{page_alone}/").on_a_laptop() as page:
        yield page
