"""The program: its version, its help, and what they import."""

import os
import subprocess
import sys

import pytest

import swinv2
from commands import swinv2_command


def test_version_and_help() -> None:
    assert swinv2_command("--version").stdout == f"swinv2 {swinv2.__version__}\n"
    assert "classify" in swinv2_command("--help").stdout
    as_module = [sys.executable, "-m", "swinv2", "--version"]
    assert (
        subprocess.run(as_module, capture_output=True, text=True, check=True).stdout == f"swinv2 {swinv2.__version__}\n"
    )
    for command in ("info", "classify", "features", "demo"):
        result = swinv2_command(command, "--help")
        assert result.exit_code == 0
        assert len(result.stdout) > 100


@pytest.mark.parametrize("command", [[], ["info"], ["classify"], ["convert"], ["evaluate"]])
def test_help_shows_no_type_after_a_switch(command: list[str]) -> None:
    shown = swinv2_command(*command, "--help").stdout
    assert "<bool>" not in shown
    assert "BOOLEAN" not in shown
    assert "--help" in shown


def seconds_of_children() -> float:
    """What the processes that have ended took of processors, whatever else ran beside them."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["classify", "--help"], 0),
        (["info", "--help"], 0),
        (["page", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["clasify"], 2),
        (["--nonsense"], 2),
        (["classify", "--nonsense"], 2),
        (["info"], 2),
        (["classify", "--batch-size", "0"], 2),
        (["classify"], 2),
        (["classify", "a.png", "--json", "--csv"], 2),
        (["info", "tiny", "--image-size", "wide"], 2),
        (["convert", "weights.pth"], 2),
        (["pretrain", "--help"], 0),
        (["finetune", "--help"], 0),
        (["finetune", "-h"], 0),
        (["finetune", "--wieght-decay", "1"], 2),
        (["finetune", "--weight_decay", "much"], 2),
        (["pretrain", "--data"], 2),
        (["pretrain", "--data", "a", "--model", "tiny"], 2),
        (["pretrain", "--config", "nowhere.yaml"], 2),
    ],
)
def test_help_and_refusals_import_nothing_that_takes_long(arguments: list[str], status: int) -> None:
    script = (
        "import sys\n"
        "from swinv2.cli import app\n"
        "try:\n"
        "    app()\n"
        "finally:\n"
        "    heavy = ('torch', 'transformers', 'numpy', 'PIL', 'pyarrow')\n"
        "    print('imported:', *(name for name in heavy if name in sys.modules), file=sys.stderr)\n"
    )
    before = seconds_of_children()
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    # A third of a second where nothing else runs; torch and transformers take three and more.
    assert seconds_of_children() - before < 1.5
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1].strip() == "imported:"
    assert "Traceback" not in done.stderr
