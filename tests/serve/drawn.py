"""Read cards of the page back: which figures there are, what is written and drawn in them, whether tags nest."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from html import unescape
from html.parser import HTMLParser
from typing import Any


SVG = "{http://www.w3.org/2000/svg}"
VOID = {"img", "input"}


class Balance(HTMLParser):
    """Raises where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """<line/> opens nothing."""
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("data", "title"):
            self.words.append(data)


@dataclass(frozen=True)
class Drawn:
    """One figure: its picture, the numbers behind it, and the words that stand in the picture."""

    svg: ET.Element
    data: Any

    @property
    def texts(self) -> list[tuple[float, float, str]]:
        """(x, y, words) of every text."""
        return [(float(t.get("x", "")), float(t.get("y", "")), t.text or "") for t in self.svg.iter(f"{SVG}text")]

    @property
    def lines(self) -> list[list[str]]:
        """The words of each line from left to right, lines from top to bottom."""
        rows: dict[float, list[tuple[float, str]]] = {}
        for x, y, words in self.texts:
            rows.setdefault(y, []).append((x, words))
        return [[words for _, words in sorted(rows[y])] for y in sorted(rows)]

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of a kind."""
        return [dict(element.attrib) for element in self.svg.iter(SVG + tag)]


def page(html: str) -> Balance:
    """The cards as a browser reads them, all tags closed."""
    balance = Balance()
    balance.feed(html)
    assert balance.open == []
    return balance


def said(html: str) -> str:
    """All words that are seen, with single spaces."""
    return " ".join(" ".join(page(html).words).split())


def figures(html: str) -> dict[str, Drawn]:
    """The figures by their id."""
    found = {}
    for id_, content in re.findall(r'<figure class="[^"]*" id="([^"]*)".*?>(.*?)</figure>', html, re.DOTALL):
        (svg,) = re.findall(r"<svg .*?</svg>", content, re.DOTALL)
        (data,) = re.findall(r'<data class="numbers" hidden>([^<]*)</data>', content)
        root = ET.fromstring(svg.replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))
        assert id_ not in found
        found[id_] = Drawn(root, json.loads(unescape(data)))
    return found
