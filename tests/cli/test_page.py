"""The command that serves the page: its help, and what it says if something is missing."""

import importlib.util
import subprocess
import sys

import pytest

from commands import swinv2_command

HAS_GRADIO = importlib.util.find_spec("gradio") is not None


def test_help() -> None:
    shown = swinv2_command("page", "--help").stdout
    for option in ("--model", "--host", "--port", "--share", "--open", "--device"):
        assert option in shown
    assert "127.0.0.1" in shown


@pytest.mark.parametrize("name", ["gradio", "matplotlib"])
def test_without_the_extra_the_command_names_it(name: str) -> None:
    if name != "gradio" and not HAS_GRADIO:
        pytest.skip("there is no gradio, which is looked for first; run `make page-tests`")
    script = f"import sys; sys.modules[{name!r}] = None\nfrom swinv2.cli import app\napp(['page'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert f"page needs {name}, which is not installed; install swinv2[demo]." in done.stderr


@pytest.mark.skipif(not HAS_GRADIO, reason="there is no gradio; run `make page-tests`")
def test_a_model_that_is_not_there(tmp_path: object) -> None:
    result = swinv2_command("page", "--model", f"{tmp_path}/nowhere")
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr


@pytest.mark.parametrize("port", ["0", "70000", "http"])
def test_an_impossible_port(port: str) -> None:
    assert swinv2_command("page", "--port", port).exit_code == 2
