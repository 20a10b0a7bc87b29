"""What a link to the page keeps, to the URL's query and back."""

from typing import Any
from urllib.parse import parse_qs, parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.ui.effects import BLUR, CONTRAST, NOISE
from serve.ui.link import Link


# Everything printable in Unicode: categories C are control characters and such, Z separators (a space is printable).
NAMES = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" &=+%#?/"), min_size=1, max_size=200)
LINKS = st.builds(
    Link,
    model=st.none() | NAMES,
    precision=st.none() | st.sampled_from(["fp32", "fp16", "int8"]),
    sample=st.none() | st.integers(0, 10**9 - 1),
    noise=st.floats(0, NOISE),
    blur=st.floats(0, BLUR),
    contrast=st.floats(0, CONTRAST),
    threshold=st.none() | st.floats(0, 1),
    layer=st.none() | NAMES,
    other=st.none() | NAMES,
    t=st.none() | st.integers(1, 10**9 - 1),
)


@given(LINKS)
def test_a_link_is_read_as_it_was_written(link: Link) -> None:
    query = link.query()
    assert query.isascii()
    assert not set(query) & set(' "<>#?')
    assert Link.read(dict(parse_qsl(query, strict_parsing=bool(query)))) == link


def test_only_what_is_not_the_default_is_written_in_one_order() -> None:
    assert Link().query() == ""
    assert Link(contrast=1.0, noise=0.0).query() == ""
    link = Link(t=2, sample=0, blur=1.5, model="a net & co", layer="body.act1", threshold=0.9)
    assert link.query() == "model=a+net+%26+co&sample=0&blur=1.5&threshold=0.9&layer=body.act1&t=2"


def test_what_the_page_does_not_know_is_ignored() -> None:
    assert Link.read({"__theme": "dark", "sample": "7", "utm": "x"}) == Link(sample=7)


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("model", "", "a name of 1 to 200 printable characters"),
        ("layer", "x" * 201, "a name of 1 to 200 printable characters"),
        ("other", "a\nb", "a name of 1 to 200 printable characters"),
        ("precision", "\ud800", "a name of 1 to 200 printable characters"),
        ("sample", "-1", "a whole number from 0"),
        ("sample", "1.0", "a whole number from 0"),
        ("sample", "٣", "a whole number from 0"),  # a digit of another script
        ("sample", "9" * 5000, "a whole number from 0"),
        ("t", "0", "a whole number from 1"),
        ("noise", "0.51", "a number from 0 to 0.5"),
        ("noise", "nan", "a number from 0 to 0.5"),
        ("blur", "inf", "a number from 0 to 3"),
        ("contrast", "-0.1", "a number from 0 to 2"),
        ("contrast", "much", "a number from 0 to 2"),
        ("threshold", "1.01", "a number from 0 to 1"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, text: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"the link's {name} must be {allowed}, got ") as refused:
        Link.read({name: text})
    assert len(str(refused.value)) < 200


@given(st.dictionaries(st.sampled_from([*Link.__dataclass_fields__, "else"]), st.text() | st.text("0123456789.-e")))
def test_whatever_an_address_says_is_read_or_refused(params: dict[str, str]) -> None:
    try:
        link = Link.read(params)
    except ValueError:
        return
    assert Link.read({name: texts[0] for name, texts in parse_qs(link.query()).items()}) == link


@pytest.mark.parametrize("wrong", [{"noise": 1.0}, {"sample": -1}, {"threshold": 2.0}, {"t": 0}, {"model": ""}])
def test_no_link_is_made_that_could_not_be_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"the link's {next(iter(wrong))} must be "):
        Link(**wrong)
