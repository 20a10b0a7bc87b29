"""Words of the page can be read, in light and in dark: WCAG 2.1, 1.4.3 (AA); and samples are called by their labels."""

from typing import Any

import pytest
from browsing import Browsing


pytestmark = pytest.mark.browser
TABS = ("steps", "spikes", "energy", "compare", "testset", "chip")
FAINT = """
const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function rgba(colour) {
  probe.clearRect(0, 0, 1, 1);
  probe.fillStyle = colour;
  probe.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = probe.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}
const over = (top, below, share) => [0, 1, 2].map((i) => share * top[i] + (1 - share) * below[i]);
function paper(element) {
  if (!element) return [255, 255, 255];
  const colour = rgba(getComputedStyle(element).backgroundColor);
  return colour[3] === 1 ? colour : over(colour, paper(element.parentElement), colour[3]);
}
function opacity(element) {
  return element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1;
}
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = (c) => 0.2126 * linear(c[0] / 255) + 0.7152 * linear(c[1] / 255) + 0.0722 * linear(c[2] / 255);
const faint = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const words = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
  // Figures stand on colours of their own; a control that is switched off needs no contrast.
  if (!words || element.closest("svg, script, style, data, :disabled")) continue;
  if (!element.getClientRects().length || !element.checkVisibility({ visibilityProperty: true })) continue;
  if (opacity(element) === 0) continue;
  const style = getComputedStyle(element), ground = paper(element), ink = rgba(style.color);
  const seen = light(over(ink, ground, ink[3] * opacity(element))), behind = light(ground);
  const ratio = (Math.max(seen, behind) + 0.05) / (Math.min(seen, behind) + 0.05);
  const size = parseFloat(style.fontSize);
  const wanted = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
  if (ratio < wanted) faint.push(`${words.slice(0, 40)}: ${ratio.toFixed(2)}, ${style.color} on ${ground}`);
}
return faint;
"""
MOVING = "return document.getAnimations().some((each) => each.playState === 'running')"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_can_be_read(page: Browsing, theme: str) -> None:
    page.open(f"?__theme={theme}&noise=0.5")
    marks = set()
    for index, tab in enumerate(TABS):
        page.tab(tab)
        page.sample(index)
        page.until(lambda tab=tab: page.all(f"#tab-{tab}-button.selected") and not page.run(MOVING))
        for t in range(1, page.answer["T"] + 1):
            page.go(t)
            marks |= {mark.get_attribute("class") for mark in page.all("#answer-card .right, #answer-card .wrong")}
            assert not (faint := page.run(FAINT)), f"{theme}, {tab}, step {t}: {faint}"
    assert marks == {"right", "wrong"}


def test_a_sample_is_called_by_its_label(page: Browsing) -> None:
    def names() -> Any:
        return [each.accessible_name for each in page.all("#samples button.thumbnail-item")]

    labels = [each.text for each in page.all("#samples .caption-label")]
    assert len(set(labels)) > 1
    page.until(lambda: names() == [f"{label}, sample {index}" for index, label in enumerate(labels)])
