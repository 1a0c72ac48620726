"""Logs go to stderr, in one of two forms, and never hold a secret."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from dfl_node import logs


def test_json_logs_are_one_object_a_line_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    log = structlog.get_logger("test")
    log.debug("unheard")
    log.info("heard", job=1, api_token="the-token", wallet_password="pw")
    try:
        raise ValueError("inside")
    except ValueError:
        log.exception("broken")
    out, err = capsys.readouterr()
    assert out == ""
    first, second = map(json.loads, err.splitlines())
    assert (first["event"], first["level"], first["job"], first["api_token"]) == ("heard", "info", 1, "…")
    assert first["timestamp"].endswith("Z")
    assert "the-token" not in err
    assert "pw" not in first.values()
    assert second["exception"][0]["exc_type"] == "ValueError"


def test_libraries_are_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("console", "debug")
    library = logging.getLogger("some.library")
    library.info("chatter")
    library.warning("trouble")
    structlog.get_logger("test").debug("heard")
    out, err = capsys.readouterr()
    assert out == ""
    assert "chatter" not in err
    assert "trouble" in err
    assert "heard" in err
    assert "\x1b" not in err


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_local_variable(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(form, "info")
    password = "-".join(("local", "secret"))
    try:
        raise ValueError(len(password))
    except ValueError:
        structlog.get_logger("test").exception("broken")
    err = capsys.readouterr().err
    assert "ValueError" in err
    assert "local-secret" not in err
