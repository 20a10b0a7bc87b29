"""Read what a request asks for besides its images: from the query, from form fields, from the keys of a JSON object.

All three say the same in JSON's notation: ?top_k=3, a field with the text `3`, {"top_k": 3}. A model's name stands in
the query as it is; BentoML's client puts it into a form in quotes, and sends null for what its caller left open.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from serve.web.jsonbody import wrong
from serve.web.schema import MAX_TOP_K, Options
from serve.web.shape import Refusal


NAMES = ("model", *Options.model_fields)
Given = Mapping[str, Any]
HINT = (
    f"top_k: 1 to {MAX_TOP_K}; exit_confidence: 0 to 1; steps: 1 to the model's T; detail: true or false; "
    "model: one of GET /models"
)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,99})(\.[0-9]{1,99})?([eE][+-]?[0-9]{1,9})?")
_WORDS = {"true": True, "false": False}


def of_query(pairs: Iterable[tuple[str, str]], *, known: Sequence[str] = NAMES) -> Given:
    """The options of a query string. Raises Refusal, also for a name that is not in `known`."""
    return _joined((name, _of_text(name, text)) for name, text in _named(pairs, "query parameter", known))


def of_form(pairs: Iterable[tuple[str, str]]) -> Given:
    """The options of a form's text fields. Raises Refusal."""
    named = _named(pairs, "form field", NAMES)
    return _without_null(_joined((name, None if text == "null" else _of_text(name, text)) for name, text in named))


def of_json(keys: Mapping[str, Any]) -> Given:
    """The options among the keys of a JSON object. Raises Refusal."""
    return _without_null(_joined(_named(keys.items(), "key", NAMES)))


def merged(query: Given, body: Given) -> tuple[str | None, Options]:
    """The model's name and the options; Refusal if the query and the body differ."""
    for name in query.keys() & body.keys():
        if query[name] != body[name]:
            differ = f"{_shown(query[name])} in the query, but {_shown(body[name])} in the body"
            raise wrong("conflicting_options", f"`{name}` is {differ}", "give it once")
    given = {**query, **body}
    return given.pop("model", None), Options(**given)


def bad_option(error: Exception) -> Refusal:
    """The refusal of an option that the model found wrong, as more steps than it has."""
    return wrong("bad_option", str(error), HINT)


def unknown(name: str, kind: str, known: Sequence[str]) -> Refusal:
    """The refusal of a name, with the nearest of those that there are."""
    nearest = difflib.get_close_matches(name[:40], known, n=1, cutoff=0)
    message = f"no {kind} is named {_shown(name)}; the nearest is `{nearest[0]}`"
    return wrong("unknown_field", message, f"there are: {', '.join(known)}")


def _named(pairs: Iterable[tuple[str, Any]], kind: str, known: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name, value in pairs:
        if name not in known:
            raise unknown(name, kind, known)
        yield name, value


def _joined(pairs: Iterable[tuple[str, Any]]) -> Given:
    """Checked values by name."""
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in given:
            told = f"`{name}` is given twice: {_shown(given[name])} and {_shown(value)}"
            raise wrong("conflicting_options", told, "give it once")
        given[name] = None if value is None else _checked(name, value)
    return given


def _without_null(given: Given) -> Given:
    return {name: value for name, value in given.items() if value is not None}


def _checked(name: str, value: Any) -> Any:
    if name == "model":
        if isinstance(value, str):
            return value
        raise wrong("bad_option", f"`model` is {_shown(value)}, not a name", HINT)
    try:
        return getattr(Options(**{name: value}), name)
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"].lower()
        raise wrong("bad_option", f"`{name}` is {_shown(value)}: {why}", HINT) from None


def _of_text(name: str, text: str) -> Any:
    """A JSON number or word as its value; other text stays text, which no option but the model takes."""
    if name == "model":
        return _unquoted(text)
    if text in _WORDS:
        return _WORDS[text]
    return json.loads(text) if _NUMBER.fullmatch(text) else text


def _unquoted(text: str) -> str:
    if text[:1] == '"':
        try:
            return str(json.loads(text))
        except (ValueError, RecursionError):
            pass  # a name that begins with a quotation mark
    return text


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}.."
