"""The OpenAPI document: whole, well-formed, and true of what the server takes and answers."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openapi_spec_validator
import pytest
from fastapi.openapi.models import OpenAPI
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request
from synthetic import LABELS, write_bundle

from serve.bundle import Description, read
from serve.predictor import Predictor
from serve.web import intake, openapi, openapi_examples, openapi_page
from serve.web.intake import Refusal
from serve.web.jsonbody import MAX_BATCH
from serve.web.schema import Classification, ErrorBody, ModelList, Options, ServedModel, model_entry


Json = dict[str, Any]
T, SHAPE = 3, (1, 8, 8)  # of the synthetic bundle
PICTURE = openapi_examples.PICTURE
OPERATIONS = {
    ("post", "/classify"): {200, 400, 401, 404, 408, 413, 415, 422, 500, 503},
    ("post", "/classify_batch"): {200, 400, 401, 404, 408, 413, 415, 422, 500, 503},
    ("get", "/model"): {200, 401, 404, 422, 500, 503},
    ("get", "/models"): {200, 401, 500, 503},
    ("get", "/metrics"): {200, 401, 500, 503},
    ("get", "/docs.json"): {200, 401, 500, 503},
    ("get", "/"): {200, 401, 500, 503},
    ("get", "/livez"): {200},
    ("get", "/readyz"): {200, 503},
    ("get", "/healthz"): {200},
}


# What `valid` understands, and what says nothing of what is valid.
KNOWN = {"$ref", "anyOf", "type", "enum", "const", "format", "pattern", "items", "properties", "required"}
KNOWN |= {"minimum", "maximum", "exclusiveMinimum", "minItems", "maxItems", "minLength", "additionalProperties"}
KNOWN |= {"description", "default", "contentEncoding", "contentMediaType", "propertyNames"}


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return Predictor(bundle_dir, provider="cpu")


@pytest.fixture(scope="module")
def about(bundle_dir: Path) -> Description:
    return read(bundle_dir).about


@pytest.fixture(scope="module", params=["nothing", "a bundle"])
def document(request: pytest.FixtureRequest, about: Description) -> Json:
    return openapi.document({"shapes": about} if request.param == "a bundle" else None)


@pytest.fixture(scope="module")
def exact(about: Description) -> Json:
    return openapi.document({"shapes": about})


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def parts(value: object) -> Iterator[Json]:
    """Every object in it."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(part)


def valid(value: Any, schema: Json, document: Json) -> bool:
    """Whether a JSON value follows a schema: JSON Schema 2020-12 as far as the document uses it."""
    assert schema.keys() <= KNOWN, schema
    if "$ref" in schema:
        return valid(value, document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], document)
    if "anyOf" in schema and not any(valid(value, each, document) for each in schema["anyOf"]):
        return False
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_kind = {
        "null": value is None,
        "boolean": isinstance(value, bool),
        "number": number,
        "integer": number and float(value).is_integer(),
        "string": isinstance(value, str),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }
    if kinds and not any(is_kind[kind] for kind in kinds):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if schema.get("format") == "image" and isinstance(value, str) and value != PICTURE:
        return False
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        return False
    if number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    if number and value <= schema.get("exclusiveMinimum", value - 1):
        return False
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        return all(valid(item, schema.get("items", {}), document) for item in value)
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        if set(schema.get("required", [])) - value.keys():
            return False
        for name, item in value.items():
            rule = properties.get(name, others)
            if rule is False or (isinstance(rule, dict) and not valid(item, rule, document)):
                return False
    return True


def test_it_is_an_openapi_document(document: Json) -> None:
    OpenAPI.model_validate(document)
    assert document["openapi"] == "3.1.0"
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_a_validator_takes_it(document: Json) -> None:
    openapi_spec_validator.validate(document)


def test_every_operation_is_there_with_every_status(document: Json) -> None:
    found = {(method, path): set(map(int, each["responses"])) for method, path, each in operations(document)}
    assert found == OPERATIONS
    names = [each["operationId"] for _, _, each in operations(document)]
    assert len(set(names)) == len(names)


def test_every_reference_leads_to_a_schema_and_every_schema_is_used(document: Json) -> None:
    schemas = document["components"]["schemas"]
    used = {part["$ref"] for part in parts(document) if "$ref" in part}
    assert used == {f"#/components/schemas/{name}" for name in schemas}


def test_every_error_has_examples_in_the_one_shape(document: Json) -> None:
    for _, path, operation in operations(document):
        for status, response in operation["responses"].items():
            assert "X-Request-ID" in response["headers"]
            assert ("Retry-After" in response["headers"]) == (status == "503")
            assert ("WWW-Authenticate" in response["headers"]) == (status == "401")
            if status == "200":
                continue
            examples = response["content"]["application/json"]["examples"]
            assert examples, f"{path} {status}"
            for code, each in examples.items():
                assert ErrorBody.model_validate(each["value"]).error.code == code


@pytest.mark.parametrize("field", ["image", "images"])
def test_examples_of_errors_are_given_with_their_status(field: Any) -> None:
    for status, refusals in openapi_examples.refusals(field).items():
        assert {refusal.status for refusal in refusals} == {status}
        assert len({refusal.code for refusal in refusals}) == len(refusals)


def test_examples_of_answers_are_answers(document: Json) -> None:
    kinds = {"Classification": Classification, "ServedModel": ServedModel, "ModelList": ModelList}
    seen = set()
    for _, _, operation in operations(document):
        for media in operation["responses"]["200"]["content"].values():
            for each in media.get("examples", {}).values():
                assert valid(each["value"], media["schema"], document)
                seen.add(str(media["schema"]))
                kind = kinds.get(media["schema"].get("$ref", "").rsplit("/", 1)[-1])
                if kind in (Classification, ModelList):
                    assert kind.model_validate(each["value"]).model_dump(mode="json") == each["value"]
    assert len(seen) == 5


def test_real_answers_follow_their_schemas(document: Json, predictor: Predictor) -> None:
    image = np.random.default_rng(0).random((2, *SHAPE)).astype(np.float32)
    predictions = predictor.predict(image)
    schemas = document["components"]["schemas"]
    for options in (Options(), Options(detail=False), Options(top_k=1)):
        for each in predictions:
            answer = Classification.of(each, predictor.about, options=options, bundle=predictor.id)
            assert valid(answer.model_dump(mode="json"), schemas["Classification"], document)
    card = ServedModel.of(predictor, model="shapes", since=1.5)
    assert valid(card.model_dump(mode="json"), schemas["ServedModel"], document)
    listed = ModelList(default="shapes", models=[model_entry(predictor, model="shapes", since=1.5)])
    assert valid(listed.model_dump(mode="json"), schemas["ModelList"], document)


def test_an_answer_without_a_part_does_not_follow_its_schema(document: Json) -> None:
    """That is, the check above can fail."""
    answer = openapi_examples.CLASSIFICATION.model_dump(mode="json")
    schema = document["components"]["schemas"]["Classification"]
    assert valid(answer, schema, document)
    for name in answer.keys() - {"per_timestep", "spike_rates", "energies"}:
        assert not valid({key: answer[key] for key in answer if key != name}, schema, document), name
    assert not valid(answer | {"probability": 1.5}, schema, document)
    assert not valid(answer | {"top_k": []}, schema, document)


def accepted(field: str, value: object, query: str, predictor: Predictor) -> bool:
    """Whether a JSON body is taken, up to the network."""
    body = json.dumps(value).encode()

    async def receive() -> Json:
        return {"type": "http.request", "body": body}

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": query.encode()}

    refused: list[int] = []

    async def ask() -> bool:
        try:
            asked = await (intake.one if field == "image" else intake.several)(Request(scope, receive))
            await intake.pixels(asked, predictor)
        except Refusal as refusal:
            refused.append(refusal.status)
            return False
        return (asked.options.steps or 1) <= T and asked.model in (None, "shapes")

    taken = asyncio.run(ask())
    assert set(refused) <= {400, 422}
    return taken


numbers = st.sampled_from([0, 1, 0.5, 0.25, -1, 1.5, 2, True, False, None, "0", [0.5], {}])
good = st.sampled_from([0, 1, 0.5])


def nested(size: tuple[int, ...], pixels: st.SearchStrategy) -> st.SearchStrategy:
    """Nested arrays of this shape; sometimes one is too long or too short."""
    if not size:
        return pixels
    inner = nested(size[1:], pixels)
    return inner.map(lambda row: [row] * size[0]) | inner.map(lambda row: [row] * (size[0] + 1))


pictures = st.one_of(
    st.just(PICTURE),
    nested(SHAPE, good),
    nested(SHAPE, numbers),
    st.sampled_from(["", "no", PICTURE[:-1], None, 3, {}, [], [[]], [[[]]], [PICTURE], "http://example.com/x.png"]),
)
options = {
    "top_k": st.sampled_from([1, 5.0, 1000, 0, 1001, 2.5, True, "3", None, [1], 10**30]),
    "exit_confidence": st.sampled_from([0, 1, 0.5, -0.5, 2, "1", False, None, {}]),
    "steps": st.sampled_from([1, 2.0, 3, 4, 0, 1.5, True, "2", None]),
    "detail": st.sampled_from([True, False, 0, 1, "true", None]),
    "model": st.sampled_from(["shapes", "other", "", 3, None]),
    "topk": st.just(3),
}


def mostly(field: str, images: st.SearchStrategy) -> st.SearchStrategy:
    """Objects with images and a few options."""
    some = st.lists(st.sampled_from(sorted(options)), max_size=2, unique=True)
    picked = some.flatmap(lambda names: st.fixed_dictionaries({name: options[name] for name in names}))
    return st.builds(lambda image, more: {field: image, **more}, images, picked) | picked


@given(mostly("image", pictures) | pictures)
@example({"image": [[[0.5] * 8] * 8] * 1, "steps": 3.0})
@example({"image": [[[0.5] * 8] * 8] * 2})
def test_what_the_schema_of_one_image_allows_is_what_is_taken(exact: Json, predictor: Predictor, value: object) -> None:
    schema = exact["paths"]["/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert valid(value, schema, exact) == accepted("image", value, "", predictor)


several = st.one_of(
    st.lists(pictures, max_size=3),
    st.lists(st.just(PICTURE), min_size=1, max_size=3),
    pictures.map(lambda picture: [picture] * 2),
    pictures.map(lambda picture: [picture] * (MAX_BATCH + 1)) if MAX_BATCH < 300 else st.nothing(),
    pictures,
)


@given(mostly("images", several) | several)
@example([PICTURE] * MAX_BATCH)
@example({"images": [[[[0.5] * 8] * 8]] * 2, "detail": False})
def test_what_the_schema_of_several_images_allows_is_what_is_taken(
    exact: Json, predictor: Predictor, value: object
) -> None:
    schema = exact["paths"]["/classify_batch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert valid(value, schema, exact) == accepted("images", value, "", predictor)


TEXTS = [
    "0",
    "1",
    "3",
    "5",
    "1000",
    "1001",
    "0.5",
    "1.5",
    "-1",
    "1e-1",
    "true",
    "false",
    "null",
    "",
    "x",
    "shapes",
    " 1",
]


@pytest.mark.parametrize("name", ["model", *Options.model_fields])
@pytest.mark.parametrize("text", TEXTS)
def test_what_the_schema_of_a_parameter_allows_is_what_is_taken(
    exact: Json, predictor: Predictor, name: str, text: str
) -> None:
    (schema,) = [each["schema"] for each in exact["paths"]["/classify"]["post"]["parameters"] if each["name"] == name]
    try:
        said = text if schema["type"] == "string" or text != text.strip() else json.loads(text)
    except ValueError:
        said = text
    expected = valid(said, schema, exact)
    assert accepted("image", {"image": PICTURE}, f"{name}={text.replace(' ', '%20')}", predictor) == expected


@pytest.mark.parametrize("path", ["/classify", "/classify_batch"])
def test_the_examples_of_requests_are_taken(exact: Json, document: Json, predictor: Predictor, path: str) -> None:
    media = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    field = "image" if path == "/classify" else "images"
    for each in media["examples"].values():
        assert accepted(field, each["value"], "", predictor)


def test_several_shapes_are_all_in_the_schema(about: Description) -> None:
    other = about.model_copy(update={"input": about.input.model_copy(update={"height": 4}), "T": 7})
    document = openapi.document({"shapes": about, "low": other})
    for rows, taken in ((8, True), (4, True), (5, False)):
        body = {"image": [[[0.5] * 8] * rows], "steps": 7, "model": "low"}
        assert valid(body, document["components"]["schemas"]["OneImage"], document) == taken
        assert valid([body["image"]], document["components"]["schemas"]["SeveralImages"], document) == taken


def test_media_types_are_those_that_are_read(document: Json) -> None:
    one = document["paths"]["/classify"]["post"]["requestBody"]["content"]
    several_ = document["paths"]["/classify_batch"]["post"]["requestBody"]["content"]
    assert one.keys() == {"multipart/form-data", "application/json", "image/*", "application/octet-stream"}
    assert several_.keys() == {"multipart/form-data", "application/json"}


def test_health_asks_for_no_key_and_all_else_may(document: Json) -> None:
    assert {} in document["security"]
    assert {name for each in document["security"] for name in each} == document["components"]["securitySchemes"].keys()
    open_ = {path for _, path, operation in operations(document) if operation.get("security") == []}
    assert open_ == {"/livez", "/readyz", "/healthz"}


def test_it_names_no_place_of_the_server(document: Json, bundle_dir: Path) -> None:
    assert str(bundle_dir.parent) not in json.dumps(document)


def test_the_page_shows_every_operation_and_loads_nothing(document: Json) -> None:
    response = openapi_page.page(document)
    text = response.body.decode()
    for method, path, operation in operations(document):
        assert f"<b>{method.upper()}</b> {path}" in text
        assert operation["summary"] in text
    assert set(re.findall(r'(?:src|href)="([^"]*)"', text)) == {"ui", "docs.json"}
    assert "<script" not in text
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_the_page_escapes_what_bundles_say(tmp_path: Path) -> None:
    about = read(write_bundle(tmp_path / "bundle", samples=1)).about
    text = openapi_page.page(openapi.document({"<b>x</b>": about})).body.decode()
    assert "<b>x</b>" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert LABELS
