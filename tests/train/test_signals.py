"""Signals to a training and to the processes that read its images: who answers, and what is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from colours import draw_colours
from swinv2.cli import app, training
from swinv2.train import checkpoints, signals
from trainings import log, losses, start, wait_for


def living(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    found: list[str] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(") ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(name)
    return found


def wait_until_gone(group: int, seconds: float = 5) -> None:
    """Waits for the last process of a group to end."""
    end = time.monotonic() + seconds
    while found := living(group):
        assert time.monotonic() < end, found
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("to_all", "number", "persistent"),
    [
        (True, signal.SIGTERM, "false"),
        pytest.param(False, signal.SIGTERM, "true", marks=pytest.mark.slow),
        pytest.param(True, signal.SIGINT, "true", marks=pytest.mark.slow),
    ],
)
def test_stopped_and_gone_on_without_a_complaint(
    flags: list[str], tmp_path: Path, to_all: bool, number: int, persistent: str
) -> None:
    """Neither run complains, even where processes still read when the one that trains ends; and none is left."""
    flags = [*flags, "--num_train_epochs", "12", "--dataloader_num_workers", "2", "--eval_strategy", "no"]
    flags += ["--dataloader_persistent_workers", persistent]
    process = start("finetune", flags)
    run = tmp_path / "run"
    # In the midst of an epoch, which goes on in the midst.
    wait_for(lambda: (run / "log.jsonl").exists() and len(losses(run)) > 6, process)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    wait_until_gone(process.pid)
    assert "Traceback" not in errors
    stopped = checkpoints.newest_valid(run)[0]
    assert stopped is not None
    step = int(stopped.name.split("-")[1])
    assert errors.splitlines()[-1] == f"{signal.Signals(number).name}: saved at step {step}; --resume resumes it"
    again = start("finetune", [*flags, "--resume"])
    printed, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    wait_until_gone(again.pid)
    said = errors.splitlines()
    assert f"resuming from step {step} of 60: {stopped}" in said
    assert printed.startswith("training loss ")
    assert said[-1] == f"the model: {run / 'final'}"
    assert [entry["step"] for entry in log(run) if "resumed_from_step" in entry] == [step]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_killed_run_leaves_no_process(flags: list[str], tmp_path: Path) -> None:
    process = start("finetune", [*flags, "--num_train_epochs", "2000", "--dataloader_num_workers", "2"])
    wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists() and len(losses(tmp_path / "run")) > 2, process)
    process.kill()
    process.communicate(timeout=60)
    wait_until_gone(process.pid, 30)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_is_deaf_from_its_first_moment_on(method: str, tmp_path: Path) -> None:
    """A signal that finds a process before it has begun to read images does not end it."""
    script = tmp_path / "script.py"
    # A file: what is not forked imports it again.
    script.write_text(
        "import os, signal, torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from swinv2.train import signals\n"
        "if __name__ == '__main__':\n"
        "    pixels = TensorDataset(torch.zeros(8))\n"
        f"    loader = DataLoader(pixels, num_workers=1, multiprocessing_context={method!r})\n"
        "    signals.ignore_signals(loader)\n"
        "    batches = iter(loader)\n"
        "    os.kill(batches._workers[0].pid, signal.SIGTERM)\n"
        "    print(len(list(batches)), signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "8 set()\n", done.stderr
    assert not done.stderr


def test_the_second_signal_stops_at_once() -> None:
    noted: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with signals.noting_signals(noted.append):
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted == [signal.SIGTERM]
        with pytest.raises(signals.StoppedError, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_while_the_command_is_imported_is_one_line() -> None:
    program = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'swinv2.cli.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop)\n"
        "import swinv2.cli\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "SIGINT: stopped at once\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_where_no_step_is_under_way_is_one_line(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(command: str, flags: list[str]) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(training, "_read_settings", read)
    result = CliRunner().invoke(app, ["finetune"])
    assert result.exit_code == 128 + number
    said = "stopped at once; --resume resumes from the newest checkpoint, if there is one"
    assert result.stderr == f"{signal.Signals(number).name}: {said}\n"


def test_a_stopped_probe_says_what_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_preview_or_probe", lambda settings: os.kill(os.getpid(), signal.SIGTERM))
    flags = ["--data", "images", "--output-dir", str(tmp_path), "--model", "new", "--choose-settings", "false"]
    result = CliRunner().invoke(app, ["finetune", *flags, "--linear-probe", "--use-cpu"])
    assert result.exit_code == 128 + signal.SIGTERM
    assert result.stderr == "SIGTERM: stopped at once; the same command reuses the features that are stored\n"


def test_sigterm_saves_and_says_so(flags: list[str], tmp_path: Path) -> None:
    # To all processes, as launchers, timeout and terminals do: those that read images must not leave.
    flags = [*flags, "--num_train_epochs", "2000", "--save_strategy", "epoch", "--dataloader_num_workers", "2"]
    process = start("finetune", flags)
    wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists() and len(losses(tmp_path / "run")) > 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    newest, unusable = checkpoints.newest_valid(tmp_path / "run")
    assert newest is not None
    assert not unusable
    # What ends an epoch is not done for one that was left.
    evaluated = [entry["step"] for entry in log(tmp_path / "run") if "eval_loss" in entry]
    assert all(step % 5 == 0 for step in evaluated)


@pytest.mark.slow
def test_a_signal_during_an_evaluation(flags: list[str], tmp_path: Path) -> None:
    """The processes that read images for it must stay, and the step that follows is the last."""
    draw_colours(tmp_path / "more", 200)
    flags = [
        *flags,
        "--eval_data",
        str(tmp_path / "more"),
        "--eval_split",
        "train",
        "--dataloader_num_workers",
        "2",
    ]
    flags += ["--num_train_epochs", "2000", "--eval_strategy", "steps", "--eval_steps", "1"]
    process = start("finetune", [*flags, "--per_device_eval_batch_size", "2"])
    wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists() and len(losses(tmp_path / "run")) > 1, process)
    # The line of a loss is written just before its evaluation.
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert checkpoints.newest_valid(tmp_path / "run")[0] is not None
