"""What a server is told from outside: every variable has a reader, and a wrong one is named."""

from dataclasses import fields
from pathlib import Path

import pytest

from serve import settings
from serve.settings import MEGABYTE, Settings


NAMES = {
    "bundles": "TSERVE_BUNDLE",
    "default_model": "TSERVE_MODEL",
    "watch_s": "TSERVE_WATCH",
    "workers": "TSERVE_WORKERS",
    "runners": "TSERVE_RUNNERS",
    "max_batch": "TSERVE_MAX_BATCH",
    "queue": "TSERVE_QUEUE",
    "timeout_s": "TSERVE_TIMEOUT",
    "max_body": "TSERVE_MAX_BODY_MB",
    "api_key": "TSERVE_API_KEY",
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES.values():
        monkeypatch.delenv(name, raising=False)


def test_every_setting_has_a_variable() -> None:
    assert NAMES.keys() == {field.name for field in fields(Settings)}


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"bundles": "a, b,", "default_model": "b", "watch_s": "0", "workers": "2", "runners": "3", "max_batch": "4"}
    given |= {"queue": "5", "timeout_s": "1.5", "max_body": "2", "api_key": "secret"}
    for field, text in given.items():
        monkeypatch.setenv(NAMES[field], text)
    wanted = {"watch_s": 0.0, "workers": 2, "runners": 3, "max_batch": 4, "queue": 5, "timeout_s": 1.5}
    assert settings.read() == Settings(
        bundles=("a", "b"), default_model="b", max_body=2 * MEGABYTE, api_key="secret", **wanted
    )


@pytest.mark.parametrize("name", ["workers", "runners", "max_batch", "queue", "max_body"])
@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "\u0662\u00b2", "\u0665\u0660", "1000001", "9" * 5000])
def test_a_wrong_number_is_named(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES[name], text)
    most = 1024 if name == "max_body" else 1_000_000
    with pytest.raises(ValueError, match=f"{NAMES[name]} must be a whole number, 1 to {most}, got .{{3,50}}$"):
        settings.read()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("timeout_s", text) for text in ("0", "nan", "1e308", "86401")),
        *(("watch_s", text) for text in ("-1", "inf", "1e308", "x" * 5000)),
    ],
)
def test_wrong_seconds_are_named(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES[name], text)
    with pytest.raises(ValueError, match=f"{NAMES[name]} must be a number of seconds, .* to 86400, got .{{3,50}}$"):
        settings.read()


def test_without_a_name_the_first_default_that_is_there_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings.read().bundles == ("runs/latest/bundle",)
    (tmp_path / "bundle").mkdir()
    assert settings.read().bundles == ("bundle",)
    (tmp_path / "runs/latest/bundle").mkdir(parents=True)
    assert settings.read().bundles == ("runs/latest/bundle",)
