"""The page's steps, its address, its keys, who can use it, and the screens that it fits; in a real browser."""

import time
from urllib.parse import parse_qs, urlsplit

import pytest
from browsing import Browsing

from serve.predictor import Predictor


pytestmark = pytest.mark.browser


def seen(page: Browsing) -> tuple[int, str, str]:
    """The step in all places that tell it, and the answer's first line."""
    said = page.said().splitlines()[0]
    assert page.one("#step-now").text == f"step {page.step} of {page.answer['T']}"
    assert page.run("return document.getElementById('step-range').value") == str(page.step)
    assert page.one("#step-range").get_attribute("aria-valuetext") == f"step {page.step} of {page.answer['T']}"
    return page.step, said, page.one("#play").get_attribute("aria-label")


def test_every_control_of_the_steps_leads_to_the_step_that_it_names(page: Browsing, fp32: Predictor) -> None:
    (whole,) = fp32.predict(fp32.decode(fp32.sample(0))[None], exit_threshold=1.0)
    said = {t: f"{100 * probs.max():.1f} % confident" for t, probs in enumerate(whole.running_probs, 1)}
    stop = page.answer["steps_used"]

    def at(t: int) -> None:
        step, words, play = seen(page)
        assert (step, play) == (t, "Play")
        assert said[t] in words
        asked = page.driver.current_url
        assert ("t=" in asked) == (t != stop)

    at(stop)
    page.go(1)
    at(1)
    page.click("#back")  # there is none before
    at(1)
    page.click("#forward")
    at(2)
    page.key("\ue014")  # arrow right
    at(3)
    page.key("\ue014")
    at(3)
    page.key("\ue012", "\ue012")  # arrow left
    at(1)
    for figure in ("probabilities", "sureness", "spike-rates"):
        for t in (3, 2):
            columns = page.all(f"figure#{figure} [data-step='{t}']")
            columns[0].click()
            at(t)
    columns = page.all("figure#probabilities .mark .frame")
    inks = [page.run("return getComputedStyle(arguments[0]).stroke", column) for column in columns]
    assert inks[0] == inks[2] != inks[1]  # the step that is looked at is set off


def test_playing_goes_through_the_steps_and_ends_at_the_last(page: Browsing) -> None:
    page.go(3)
    page.click("#play")  # from the last step it begins anew
    assert seen(page)[0::2] == (1, "Pause")
    page.until(lambda: page.step == 2)
    page.key(" ")
    assert seen(page)[0::2] == (2, "Play")
    time.sleep(1)
    assert page.step == 2
    page.key(" ")
    page.until(lambda: seen(page)[0::2] == (3, "Play"))
    page.go(2)
    page.click("#play")
    page.sample(4)  # a new answer begins at its exit
    page.until(lambda: seen(page)[0::2] == (page.answer["steps_used"], "Play"))


def test_a_tab_is_opened_at_the_step_that_is_looked_at(page: Browsing) -> None:
    page.go(1)
    for tab in ("spikes", "energy", "steps"):
        page.tab(tab)
        page.until(lambda tab=tab: page.all(f"#tab-{tab} figure"))
        time.sleep(0.1)
        assert seen(page)[0] == 1


def test_an_address_shows_the_same_again(page: Browsing) -> None:
    page.sample(4)
    (block,) = (each for each in page.all("#effects .block") if each.text.startswith("Noise"))
    page.run("arguments[0].id = 'noise'", block)
    page.slide("#noise", 0.15)
    page.until(lambda: "noise=0.15" in page.driver.current_url)
    page.choose("network", "int8")
    page.until(lambda: page.answer["precision"] == "int8")
    page.slide("#threshold", 0.4)
    page.until(lambda: page.answer["exit"]["threshold"] == 0.4)
    page.go(3)
    address, told, drawn = page.driver.current_url, page.answer, page.figure("probabilities")
    query = parse_qs(urlsplit(address).query)
    assert {name: query[name] for name in ("sample", "noise", "precision", "threshold", "t")} == {
        "sample": ["4"],
        "noise": ["0.15"],
        "precision": ["int8"],
        "threshold": ["0.4"],
        "t": ["3"],
    }
    picture = page.all("#answer-card img")[0].get_attribute("src")
    copy(page)
    page.driver.switch_to.new_window("tab")
    try:
        page.open(f"?{urlsplit(address).query}")
        assert page.all("#answer-card img")[0].get_attribute("src") == picture
        assert page.step == 3
        assert {**page.answer, "latency_s_of_all_steps": 0} == {**told, "latency_s_of_all_steps": 0}
        assert page.figure("probabilities") == drawn
        assert page.run("return document.querySelector('#threshold input[type=range]').value") == "0.4"
        assert page.run("return document.querySelector('#noise input, #effects input').value") == "0.15"
        assert page.one("#network input").get_property("value").endswith("int8")
        assert page.driver.current_url == address
    finally:
        page.driver.close()
        page.driver.switch_to.window(page.driver.window_handles[0])


def copy(page: Browsing) -> None:
    """The address comes into the clipboard."""
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.click("#copy-link")
    page.until(lambda: page.one("#copy-link").text == "copied")
    assert (
        page.driver.execute_async_script("const done = arguments[0]; navigator.clipboard.readText().then(done, done)")
        == page.driver.current_url
    )


@pytest.mark.parametrize(("tab", "query"), [("spikes", "layer=features.1.lif"), ("compare", "other=")])
def test_an_address_opens_the_tab_that_it_is_about(page: Browsing, fp32: Predictor, tab: str, query: str) -> None:
    other = f"{fp32.about.name}, int8"
    page.open(f"?{query}{other if tab == 'compare' else ''}")
    if tab == "spikes":
        assert page.until(lambda: page.figure("spike-maps"))["layer"] == "features.1.lif"
        assert page.one("#layer input").get_property("value") == "features.1.lif"
    else:
        assert page.until(lambda: page.figure("compare"))["networks"][1]["network"] == other
    assert "selected" in page.one(f"#tab-{tab}-button").get_attribute("class")
    page.sample(1)
    assert query.partition("=")[0] in page.driver.current_url


def test_everything_has_a_name_and_is_reached_by_keys(page: Browsing) -> None:
    from selenium.webdriver import ActionChains, Keys

    for tab in ("spikes", "energy", "compare", "testset", "chip", "steps"):
        page.tab(tab)
        page.until(lambda tab=tab: page.all(f"#tab-{tab} .card"))
        assert page.run(NAMELESS) == []
    page.open()
    reached = []
    for _ in range(60):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.append(page.run(FOCUSED))
        if reached[-1] == "exit threshold":
            break
    wanted = ["copy-link", "save-all", "network", "sample", "noise", "reset", "back", "play", "forward", "step-range"]
    wanted += ["tab-steps-button", "tab-chip-button", "save", "exit threshold"]
    assert [name for name in dict.fromkeys(reached) if name in wanted] == wanted


NAMELESS = """
const seen = (element) => element.getClientRects().length && getComputedStyle(element).visibility !== "hidden";
const hidden = (element) => element.closest("[aria-hidden=true], .visually-hidden");
const named = (element) => (element.getAttribute("aria-label") ?? element.getAttribute("alt") ??
  element.getAttribute("title") ?? element.innerText ?? "").trim() || element.labels?.length;
const ours = [...document.querySelectorAll("img, svg[role=img], button, input, canvas, select, textarea")];
const bare = [...document.querySelectorAll("figure svg, #answer svg")].filter((svg) => !svg.getAttribute("aria-label"));
return [...ours.filter((each) => seen(each) && !hidden(each) && !named(each)), ...bare].map((each) => each.outerHTML);
"""
FOCUSED = """
const at = document.activeElement;
if (at.closest("#samples")) return "sample";
if (at.closest("#network")) return "network";
if (at.closest("#threshold")) return "exit threshold";
if (at.matches(".save")) return "save";
if (at.getAttribute("aria-label")?.includes("Noise")) return "noise";
return at.id;
"""


def test_the_page_fits_a_laptop_and_a_phone(page: Browsing) -> None:
    for width, height in ((1280, 800), (390, 844)):
        page.resize(width, height)
        page.open()
        page.until(lambda: page.figure("sureness"))
        time.sleep(0.3)
        for tab in ("spikes", "energy", "compare", "testset", "steps") if width == 1280 else ("steps",):
            page.tab(tab)
            page.until(lambda tab=tab: page.all(f"#tab-{tab} figure"))
            wide = page.run("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert wide[0] <= wide[1], (tab, width)
        below = {name: page.run(BOTTOM, name) for name in ("#answer-card", ".stepper")}
        if width == 1280:
            below |= {name: page.run(BOTTOM, name) for name in ("#probabilities", "#sureness")}
        assert max(below.values()) <= height, below


BOTTOM = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom + window.scrollY"
