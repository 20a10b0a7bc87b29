"""The OpenAPI document as a page: one HTML text without scripts, and nothing that is loaded from elsewhere.

BentoML's own page asks other hosts for pictures and reports visits, and its viewer cannot read OpenAPI 3.1.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.responses import HTMLResponse


STYLE = """
body { font: 15px/1.5 sans-serif; color: #1d2430; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .3rem; font-size: 1.1rem; } h2 b { display: inline-block; min-width: 3.2rem; color: #1457a8; }
h3 { margin: 1rem 0 .3rem; font-size: .9rem; } p { margin: .4rem 0; }
code, pre { font: 13px/1.45 monospace; background: #f2f4f7; border-radius: 4px; padding: 1px 4px; }
pre { padding: .6rem .8rem; overflow-x: auto; max-height: 22rem; } summary { cursor: pointer; }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid #dde2ea; padding: .3rem .6rem .3rem 0; }
td { vertical-align: top; } td:first-child { white-space: nowrap; }
@media (prefers-color-scheme: dark) {
  body { color: #dfe4ec; background: #14181f; } code, pre { background: #222934; } h2 b { color: #7fb4ff; }
  td { border-color: #333c49; } a { color: #7fb4ff; }
}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


def page(document: Mapping[str, Any]) -> HTMLResponse:
    """Show the document."""
    info = document["info"]
    about = "".join(f"<p>{_text(part)}</p>" for part in info["description"].strip().split("\n\n"))
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    links = '<p>What the network does: <a href="ui">/ui</a>. For programs: <a href="docs.json">/docs.json</a>.</p>'
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{_text(info['title'])}</title><style>{STYLE}</style><h1>{_text(info['title'])}</h1>{about}{links}"
        f"{operations}</html>"
    )
    return HTMLResponse(text, headers={"content-security-policy": POLICY, "x-content-type-options": "nosniff"})


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<h2 id='{operation['operationId']}'><b>{method.upper()}</b> {_text(path)}</h2>"]
    parts.append(f"<p>{_text(operation['summary'])}. {_text(operation.get('description', ''))}</p>")
    samples = "\n".join(sample["source"] for sample in operation.get("x-codeSamples", []))
    if samples:
        parts.append(f"<pre>{html.escape(samples)}</pre>")
    if parameters := operation.get("parameters"):
        rows = [(f"<code>?{each['name']}=</code>", _text(_told(each))) for each in parameters]
        parts.append(f"<h3>Options</h3>{_table(rows)}")
    if body := operation.get("requestBody"):
        parts.append("<h3>Body</h3>")
        parts.extend(_examples(body["content"]))
    parts.append("<h3>Answers</h3>")
    rows = [
        (f"<code>{status}</code>", _text(answer["description"]) + "".join(_examples(answer["content"])))
        for status, answer in operation["responses"].items()
    ]
    return "".join([*parts, _table(rows)])


def _told(parameter: Mapping[str, Any]) -> str:
    """A parameter's description with its type, bounds and default."""
    schema = parameter["schema"]
    told = [schema["type"]]
    told += [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    told += [f"by default {json.dumps(schema['default'])}"] if "default" in schema else []
    told += [f"one of {', '.join(schema['enum'])}"] if "enum" in schema else []
    return f"{' '.join(told)}: {parameter['description']}"


def _examples(content: Mapping[str, Any]) -> Iterator[str]:
    for kind, media in content.items():
        if not media.get("examples"):
            yield f"<p><code>{_text(kind)}</code></p>"
        for name, example in media.get("examples", {}).items():
            value = example["value"]
            shown = value if isinstance(value, str) else json.dumps(value, indent=1)
            title = f"<code>{_text(kind)}</code> {_text(example.get('summary', name))}"
            yield f"<details><summary>{title}</summary><pre>{html.escape(shown)}</pre></details>"


def _table(rows: list[tuple[str, str]]) -> str:
    return f"<table>{''.join(f'<tr><td>{left}</td><td>{right}</td></tr>' for left, right in rows)}</table>"


def _text(text: str) -> str:
    """Escaped, with what stands between backquotes as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=True))
