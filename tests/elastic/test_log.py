"""get_logger: whose name, which level, and each record once."""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shmstore.log import get_logger


@pytest.fixture
def fresh() -> str:
    return f"test.{uuid.uuid4().hex}"


@contextmanager
def alone() -> Iterator[None]:
    """No handler but ours: pytest's own on the root would hear everything."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = handlers


def test_names_differ() -> None:
    assert get_logger("name1").name != get_logger("name2").name


def test_the_name_is_the_callers_module() -> None:
    assert get_logger().name == __name__
    assert get_logger(None).name == __name__
    assert get_logger(name=None).name == __name__


def test_a_given_name() -> None:
    assert get_logger("test.module").name == "test.module"
    assert get_logger("test.module") is logging.getLogger("test.module")


@pytest.mark.parametrize(
    ("text", "level"),
    [(None, logging.WARNING), ("", logging.WARNING), ("INFO", logging.INFO), ("debug", logging.DEBUG),
     ("15", 15), (" Error ", logging.ERROR)],
)  # fmt: skip
def test_level(monkeypatch: pytest.MonkeyPatch, fresh: str, text: str | None, level: int) -> None:
    monkeypatch.delenv("LOGLEVEL", raising=False)
    if text is not None:
        monkeypatch.setenv("LOGLEVEL", text)
    assert get_logger(fresh).level == level


def test_a_bad_level_is_warning_and_said_once(monkeypatch: pytest.MonkeyPatch, fresh: str) -> None:
    monkeypatch.setenv("LOGLEVEL", f"loud-{fresh}")
    with pytest.warns(RuntimeWarning, match="LOGLEVEL='loud-") as said:
        assert get_logger(fresh).level == logging.WARNING
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_logger(fresh).level == logging.WARNING


def test_each_record_once_on_stderr(fresh: str, capsys: pytest.CaptureFixture[str]) -> None:
    get_logger(fresh)
    get_logger(fresh + ".child")
    with alone():
        get_logger(fresh + ".child").warning("hello")
        get_logger(fresh).info("too low")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("hello") == 1
    assert f"{fresh}.child WARNING" in err
    assert "too low" not in err


def test_anothers_handler_takes_the_record(
    fresh: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    get_logger(fresh).warning("for the root")
    assert caplog.messages == ["for the root"]
    assert capsys.readouterr().err == ""
