"""The parts of the OpenAPI document that say what requests and answers are: JSON schemas, made from the types.

Where the served models are known, so are the shape of an image, the most steps and the models' names, and the schemas
say exactly what is taken; else they leave them open.

Shapes: B images, C channels, H rows, W columns.
"""

import functools
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from serve.bundle import Description
from serve.web.jsonbody import MAX_BATCH
from serve.web.schema import Classification, ErrorBody, ModelList, Options, ServedModel


Json = dict[str, Any]
REF = "#/components/schemas/"
ANSWERS = (Classification, ServedModel, ModelList, ErrorBody)
PIXEL = {"type": "number", "minimum": 0, "maximum": 1}
FILE = {"type": "string", "format": "binary", "description": "an image file"}
BASE64 = {
    "type": "string",
    "format": "image",
    "contentEncoding": "base64",
    "contentMediaType": "image/*",
    "description": "an image file in base64 (standard alphabet, padded, in one line), or a data URI of it",
}


def components(models: Mapping[str, Description]) -> dict[str, Json]:
    """Every schema that the document refers to by its name."""
    return _answers() | {
        "ImageFile": BASE64,
        "ImageArray": _any_of(_arrays(models)),
        "OneImage": _body("image", {"anyOf": [{"$ref": REF + "ImageFile"}, {"$ref": REF + "ImageArray"}]}, models),
        "SeveralImages": {
            "anyOf": [{"$ref": REF + "Images"}, _body("images", {"$ref": REF + "Images"}, models)],
        },
        "Images": _any_of([_several({"$ref": REF + "ImageFile"}), *map(_several, _arrays(models))]),
        "OneFile": _body("image", FILE, models),
        "SeveralFiles": _body("images", _several(FILE), models),
    }


@functools.cache
def _answers() -> dict[str, Json]:
    _, definitions = models_json_schema([(each, "serialization") for each in ANSWERS], ref_template=REF + "{model}")
    return {name: _plain(schema) for name, schema in definitions["$defs"].items()}


@functools.cache
def _options() -> dict[str, Json]:
    return _plain(Options.model_json_schema()["properties"])


def option(name: str, models: Mapping[str, Description], *, null: bool = False) -> Json:
    """The schema of an option, or of `model`; `null`: where null says that it is not given."""
    if name == "model":
        schema: Json = {"type": "string", "description": "the name of a model, one of GET /models; else the default"}
        if models:
            schema["enum"] = list(models)
    else:
        schema = dict(_options()[name])
        if "anyOf" in schema:
            schema = {**schema["anyOf"][0], "description": schema["description"]}
        if name == "steps" and models:
            schema["maximum"] = max(about.T for about in models.values())
    if null:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    return schema


def _body(field: str, images: Json, models: Mapping[str, Description]) -> Json:
    """An object, in JSON or as a form, with the images and the options."""
    options = {name: option(name, models, null=True) for name in ("model", *Options.model_fields)}
    return {
        "type": "object",
        "properties": {field: images, **options},
        "required": [field],
        "additionalProperties": False,
    }


def _arrays(models: Mapping[str, Description]) -> list[Json]:
    """The schemas of an image as numbers [C, H, W], one for every shape that is served."""
    shapes = {about.input.shape: None for about in models.values()}
    if not shapes:
        rows = {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": PIXEL}}
        return [{"type": "array", "minItems": 1, "maxItems": 3, "items": rows, "description": "[C, H, W]"}]
    return [_array(shape) for shape in shapes]


def _array(shape: tuple[int, ...]) -> Json:
    schema: Json = PIXEL
    for size in reversed(shape):
        schema = {"type": "array", "minItems": size, "maxItems": size, "items": schema}
    return {**schema, "description": f"[C, H, W] = {list(shape)}"}


def _several(image: Json) -> Json:
    return {"type": "array", "minItems": 1, "maxItems": MAX_BATCH, "items": image}


def _any_of(schemas: list[Json]) -> Json:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _plain(schema: Any) -> Any:
    """Without what pydantic adds for forms: titles, and defaults that no request can leave out."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
    if kept.get("default", 0) in (None, [], {}, ""):
        del kept["default"]
    return {
        key: {name: _plain(part) for name, part in value.items()} if key in ("properties", "$defs") else _plain(value)
        for key, value in kept.items()
    }
