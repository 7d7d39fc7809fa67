"""`serve`: what is refused before a model is loaded, and its help. `tests/serving` runs it."""

import socket
import sys
from pathlib import Path

import pytest

from commands import swinv2_command


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines use the service; give a key"),
        (["--host", "0.0.0.0", "--api-key", "short"], "the API key is too short or has unusual characters"),
        (["--dtype", "int8"], "--dtype is 'int8'; expected float32, bfloat16, float16."),
        (["--max-images", "65"], "--max-images is 65, above --queue 64"),
        (["--timeout", "5", "--body-timeout", "6"], "--body-timeout is 6, longer than --timeout 5"),
        (["--max-pixels", "1000000000"], "PIL reads images of up to"),
    ],
)
def test_wrong_options_are_one_sentence(arguments: list[str], sentence: str, model: Path) -> None:
    result = swinv2_command("serve", "--model", model, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr


def test_the_key_may_be_in_the_environment(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWINV2_API_KEY", "short")
    result = swinv2_command("serve", "--model", model)
    assert result.exit_code == 2
    assert "the API key is too short" in result.stderr


def test_a_taken_port(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = swinv2_command("serve", "--model", model, "--port", port)
    assert result.exit_code == 2
    assert f"the service cannot listen on 127.0.0.1 port {port}: Address already in use; give another" in result.stderr


def test_a_model_that_is_none(tmp_path: Path) -> None:
    result = swinv2_command("serve", "--model", tmp_path, "--port", 0)
    assert result.exit_code == 2
    assert "is not a model: it has no config.json" in result.stderr


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_without_the_extra_it_says_which(package: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("swinv2.serving", f"{package}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    result = swinv2_command("serve", "--model", model)
    assert result.exit_code == 2
    assert "which is not installed; install swinv2[serve]." in result.stderr
    assert package in result.stderr


def test_help_says_what_a_stranger_needs() -> None:
    text = " ".join(swinv2_command("serve", "--help").stdout.split())
    for words in ("curl --form images=@photo.jpg", "GET /docs", "/readyz", "SIGTERM", "SWINV2_API_KEY", "(429)"):
        assert words in text
