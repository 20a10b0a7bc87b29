"""The page in a real browser: what it shows is what the predictor says, and it asks no other host for anything."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import draw, png

from serve.predictor import Predictor


pytestmark = pytest.mark.browser


@pytest.fixture(params=["at /ui of the service", "alone"])
def page(request: pytest.FixtureRequest, browser: Any) -> Any:
    """The browser with the page loaded."""
    alone = request.param == "alone"
    url = request.getfixturevalue("page_alone" if alone else "server") + ("/" if alone else "/ui/")
    browser.get_log("performance")
    browser.get(url)
    wait(browser, lambda: is_loaded(browser))
    return browser


def is_loaded(page: Any) -> bool:
    """Whether the parts that the tests use are there; Gradio brings them one after the other."""
    parts = ("#label", "#samples button.thumbnail-item", "#upload input[type=file]")
    return all(find(page, part) for part in parts)


def find(page: Any, selector: str) -> list[Any]:
    """All elements that the CSS selector names."""
    return page.find_elements("css selector", selector)


def text(page: Any, selector: str) -> str:
    """The text of the one element that the CSS selector names."""
    (element,) = find(page, selector)
    return element.text


def wait(page: Any, condition: Any) -> None:
    """Until `condition` holds; elements may be replaced meanwhile."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 15, 0.1, [StaleElementReferenceException, ValueError]).until(lambda _: condition())


def test_a_chosen_sample_shows_what_the_predictor_says(page: Any, bundle_dir: Path) -> None:
    predictor = Predictor(bundle_dir)
    for index in (5, 2):
        prediction = predictor.predict(predictor.decode(predictor.sample(index))[None], exit_threshold=1.0)[0]
        find(page, "#samples button.thumbnail-item")[index].click()
        confidence = f"{100 * prediction.probs.max():.1f} % confident"
        wait(page, lambda confidence=confidence: text(page, "#confidence") == confidence)
        assert text(page, "#label") == predictor.about.labels[prediction.probs.argmax()]
        cells = [float(cell.text) for cell in find(page, "#spike-rates td")]
        assert cells == pytest.approx((100 * prediction.spike_rates.T).ravel().tolist(), abs=0.051)
        rows = [row.text.split() for row in find(page, "#steps tbody tr")]
        assert len(rows) == predictor.about.T  # all steps are shown, wherever the exit would be
        assert [float(row[-2]) for row in rows] == pytest.approx(
            (100 * prediction.running_probs.max(axis=1)).tolist(), abs=0.051
        )
        assert f"{1e9 * prediction.energy_J:.3g} nJ" in text(page, "#energy")
    hosts = {url.split("/")[2] for url in requested(page)}
    assert len(hosts) == 1
    assert hosts.pop().startswith("127.0.0.1:")


def requested(page: Any) -> set[str]:
    """Every http(s) and ws(s) URL that the browser asked for since the page began to load."""
    urls = set()
    for entry in page.get_log("performance"):
        params = json.loads(entry["message"])["message"].get("params", {})
        urls |= {params.get("request", {}).get("url", ""), params.get("url", "")}
    return {url for url in urls if url.startswith(("http", "ws"))}


def test_an_upload_is_classified_and_a_broken_one_refused(page: Any, bundle_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    find(page, "#upload input[type=file]")[0].send_keys(str(tmp_path / "broken.png"))
    wait(page, lambda: find(page, "[role=alert]"))
    assert text(page, "[role=alert]").startswith("That file cannot be classified: the file is not an image; send")
    page.refresh()
    wait(page, lambda: is_loaded(page))
    predictor = Predictor(bundle_dir)
    (tmp_path / "good.png").write_bytes(png(draw(13)))
    prediction = predictor.predict(predictor.decode(tmp_path / "good.png")[None], exit_threshold=1.0)[0]
    find(page, "#upload input[type=file]")[0].send_keys(str(tmp_path / "good.png"))
    wait(page, lambda: text(page, "#confidence") == f"{100 * prediction.probs.max():.1f} % confident")
    assert text(page, "#label") == predictor.about.labels[prediction.probs.argmax()]


def test_the_page_fits_a_laptop_screen(page: Any) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    height, width = page.execute_script("return [document.body.scrollHeight, document.body.scrollWidth]")
    assert height <= 800
    assert width <= 1280
