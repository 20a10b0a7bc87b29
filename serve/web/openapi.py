"""The OpenAPI document that the server gives at /docs.json. BentoML's own says less than it takes and answers.

`document` is made of the types and refusals that requests are answered with. tests/serve/test_openapi.py holds it
against them.
"""

from collections.abc import Mapping
from typing import Any

from serve import images
from serve.bundle import Description
from serve.web import limits, openapi_examples, shape
from serve.web.access import unauthorised
from serve.web.bodies import BYTES, FORM, JSON
from serve.web.jsonbody import MAX_BATCH
from serve.web.openapi_examples import PICTURE, PICTURE_URI, example
from serve.web.openapi_schemas import FILE, REF, Json, components, option
from serve.web.schema import Options
from serve.web.shape import Refusal


TITLE = "TSERve"
TEXT = "text/plain"
_ABOUT = f"""Classify images with a spiking neural network and see what it did, one time step at a time.

Every error has one shape, `{{"error": {{"code", "message", "hint"}}}}`: `code` is for programs, `message` says what is
wrong and where, `hint` what to do. Unknown paths answer 404, other methods 405 with the header `Allow`. If the server
has an API key, everything but /livez, /readyz and /healthz asks for it. Every answer has the header `X-Request-ID`: the
request's own, if it has one of 1 to 64 letters, digits and `._-`, else a new one.

Images: {", ".join(images.FORMATS)}, at most {images.MAX_PIXELS // 10**6} megapixels each, turned as their EXIF data
say, transparency over white, of animations the first frame; scaled and cropped to what the model takes.

BentoML's client works too: `bentoml.SyncHTTPClient(url).classify(image=Path("picture.png"), top_k=3)`.
"""
_ID_HEADER: Json = {
    "X-Request-ID": {
        "description": "under which the server's log speaks of this request",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    }
}
_RETRY_HEADER: Json = {
    "Retry-After": {
        "description": "whole seconds after which to try again",
        "required": True,
        "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"},
    }
}
_KEY_HEADER: Json = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
_WHEN = {
    400: "The body cannot be read: broken JSON, form, base64 or image, or one that is too large to decode.",
    401: "The server has an API key, and the request does not.",
    404: "No model of that name is served.",
    408: "The body did not arrive in time.",
    413: "The body is too long.",
    415: "Another content type than those above.",
    422: "The request can be read, but is not what is asked for: options, names, shapes, values, too many images.",
    500: "The server's fault.",
    503: "The server is starting, ending or busy, or had no answer in time.",
}


def document(models: Mapping[str, Description] | None = None) -> Json:
    """Make the document; with what is served, by name, it says which shapes, steps and names are taken."""
    models = models or {}
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": "1", "description": _ABOUT},
        "tags": [
            {"name": "images", "description": "What images show."},
            {"name": "models", "description": "What answers."},
            {"name": "operation", "description": "For whoever runs the server."},
        ],
        "security": [{}, {"bearer": []}, {"basic": []}],
        "paths": {
            "/classify": {"post": _classify(models)},
            "/classify_batch": {"post": _classify_batch(models)},
            "/model": {"get": _model(models)},
            "/models": {"get": _models()},
            "/metrics": {"get": _metrics()},
            "/docs.json": {"get": _document()},
            "/": {"get": _page()},
            "/livez": {"get": _health("livez", "Whether the process answers.")},
            "/readyz": {"get": _health("readyz", "Whether a model has answered, and requests are taken.")},
            "/healthz": {"get": _health("healthz", "The same as /livez.")},
        },
        "components": {
            "schemas": components(models),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
                "basic": {"type": "http", "scheme": "basic", "description": "the key as password, any user name"},
            },
        },
    }


def _classify(models: Mapping[str, Description]) -> Json:
    bytes_of_file: Json = {"schema": FILE}
    content = {
        FORM: {"schema": {"$ref": f"{REF}OneFile"}, "encoding": {"image": {"contentType": f"image/*, {BYTES}"}}},
        "image/*": bytes_of_file,
        BYTES: bytes_of_file,
        JSON: {
            "schema": {"$ref": f"{REF}OneImage"},
            "examples": {
                "base64": {"summary": "A file in base64", "value": {"image": PICTURE}},
                "options": {
                    "summary": "A data URI, every time step, three classes",
                    "value": {"image": PICTURE_URI, "top_k": 3, "exit_confidence": 1},
                },
            },
        },
    }
    answers = {
        "detail": {"summary": "With every step", "value": _dump(openapi_examples.CLASSIFICATION)},
        "brief": {"summary": "With detail=false", "value": _dump(openapi_examples.BRIEF)},
    }
    return {
        "operationId": "classify",
        "tags": ["images"],
        "summary": "Classify one image",
        "description": "The image comes as a form's file, as the body itself, or in JSON: a file in base64, or a "
        "nested array of numbers. Options come in the query, in the form, or in the JSON object.",
        "x-codeSamples": _curl(
            "-F image=@picture.png URL/classify",
            "-F image=@picture.png -F top_k=3 -F detail=false URL/classify",
            "--data-binary @picture.png -H content-type:image/png 'URL/classify?exit_confidence=1'",
            """-H content-type:application/json -d '{"image": "'$(base64 -w0 picture.png)'"}' URL/classify""",
        ),
        "parameters": _parameters(models, ("model", *Options.model_fields)),
        "requestBody": {"required": True, "content": content},
        "responses": _responses(_json({"$ref": f"{REF}Classification"}, answers), openapi_examples.refusals("image")),
    }


def _classify_batch(models: Mapping[str, Description]) -> Json:
    content = {
        JSON: {
            "schema": {"$ref": f"{REF}SeveralImages"},
            "examples": {
                "base64": {"summary": "Two files in base64", "value": {"images": [PICTURE, PICTURE_URI], "top_k": 3}},
                "bare": {"summary": "The images alone", "value": [PICTURE]},
            },
        },
        FORM: {"schema": {"$ref": f"{REF}SeveralFiles"}},
    }
    schema = {"type": "array", "minItems": 1, "maxItems": MAX_BATCH, "items": {"$ref": f"{REF}Classification"}}
    brief = {"brief": {"summary": "Of one image, with detail=false", "value": [_dump(openapi_examples.BRIEF)]}}
    return {
        "operationId": "classify_batch",
        "tags": ["images"],
        "summary": f"Classify 1 to {MAX_BATCH} images",
        "description": "Answers come in the images' order. All images of a request are of one kind: numbers or files.",
        "x-codeSamples": _curl(
            "-F images=@one.png -F images=@two.jpg 'URL/classify_batch?detail=false'",
            "-H content-type:application/json -d @batch.json URL/classify_batch",
        ),
        "parameters": _parameters(models, ("model", *Options.model_fields)),
        "requestBody": {"required": True, "content": content},
        "responses": _responses(_json(schema, brief), openapi_examples.refusals("images")),
    }


def _model(models: Mapping[str, Description]) -> Json:
    card = {"model": {"summary": "In short", "value": openapi_examples.model_card()}}
    wrong = {
        401: [unauthorised()],
        404: [openapi_examples.unknown_model()],
        422: [openapi_examples.unknown_parameter()],
    }
    return {
        "operationId": "model",
        "tags": ["models"],
        "summary": "Describe a model",
        "description": "Classes, time steps, layers, accuracy, joules per operation, when images stop, what runs it.",
        "parameters": _parameters(models, ("model",)),
        "responses": _responses(_json({"$ref": f"{REF}ServedModel"}, card), wrong | _always()),
    }


def _models() -> Json:
    listed = {"models": {"summary": "One model", "value": _dump(openapi_examples.MODELS)}}
    return {
        "operationId": "models",
        "tags": ["models"],
        "summary": "List the models",
        "responses": _responses(_json({"$ref": f"{REF}ModelList"}, listed), {401: [unauthorised()]} | _always()),
    }


def _metrics() -> Json:
    return {
        "operationId": "metrics",
        "tags": ["operation"],
        "summary": "Counts and times, for Prometheus",
        "responses": _responses(_text(openapi_examples.METRICS), {401: [unauthorised()]} | _always()),
    }


def _document() -> Json:
    schema = {"type": "object", "required": ["openapi", "info", "paths", "components"]}
    return {
        "operationId": "document",
        "tags": ["operation"],
        "summary": "This document",
        "responses": _responses({JSON: {"schema": schema}}, {401: [unauthorised()]} | _always()),
    }


def _page() -> Json:
    return {
        "operationId": "page",
        "tags": ["operation"],
        "summary": "This document as a page; what the network does is shown at /ui",
        "responses": _responses({"text/html": {"schema": {"type": "string"}}}, {401: [unauthorised()]} | _always()),
    }


def _health(name: str, summary: str) -> Json:
    starting = shape.busy("not_ready", "no model has answered yet", retry_after_s=1)
    return {
        "operationId": name,
        "tags": ["operation"],
        "summary": summary,
        "security": [],
        "responses": _responses(_text("\n"), {503: [starting]} if name == "readyz" else {}),
    }


def _parameters(models: Mapping[str, Description], names: tuple[str, ...]) -> list[Json]:
    return [{"name": name, "in": "query", **_described(option(name, models))} for name in names]


def _described(schema: Json) -> Json:
    described = {key: value for key, value in schema.items() if key != "description"}
    return {"description": schema["description"], "schema": described}


def _curl(*lines: str) -> list[Json]:
    return [{"lang": "Shell", "source": f"curl {line}"} for line in lines]


def _json(schema: Json, examples: Json) -> Json:
    return {JSON: {"schema": schema, "examples": examples}}


def _text(text: str) -> Json:
    return {TEXT: {"schema": {"type": "string"}, "examples": {"text": {"value": text}}}}


def _always() -> dict[int, list[Refusal]]:
    """What may become of any request that the server works on."""
    return {500: [shape.failed()], 503: [limits.timed_out(30)]}


def _responses(content: Json, refusals: Mapping[int, list[Refusal]]) -> Json:
    good = {"description": "The answer.", "headers": _ID_HEADER, "content": content}
    return {"200": good} | {str(status): _error(status, examples) for status, examples in refusals.items()}


def _error(status: int, refusals: list[Refusal]) -> Json:
    more = {401: _KEY_HEADER, 503: _RETRY_HEADER}.get(status, {})
    examples = {f"{refusal.code}": example(refusal) for refusal in refusals}
    content = _json({"$ref": f"{REF}ErrorBody"}, examples)
    return {"description": _WHEN[status], "headers": _ID_HEADER | more, "content": content}


def _dump(answer: Any) -> Any:
    return answer.model_dump(mode="json")
