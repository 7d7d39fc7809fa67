"""The commands that train: the preview, and exit statuses."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.integrations import integration_utils
from typer.testing import CliRunner, Result

from colours import COLOURS
from swinv2.cli import app, training
from swinv2.predict.shipped import shipped_model
from trainings import FIXED, MASKS, MUON, CrashAt, CrashError, train


def test_a_dry_run_prints_and_does_nothing(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.train("finetune", [*flags, "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for said in (
        *("36 images, 3 classes", "15 steps of 8 images, 2 of them warm-up", "which is 0.128 for 512 images"),
        *("image size, windows 32, [[4, 4], [4, 4]]", "layer learning rate weight decay tensors parameters"),
        "warmup_steps 2",
    ):
        assert said in printed
    assert training.train("finetune", [*flags, "--dry-run", "--as-json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 15
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_groups_is_status_2(flags: list[str]) -> None:
    with pytest.raises(CrashError):
        train("finetune", flags, lambda trainer: trainer.add_callback(CrashAt(6)))
    result = CliRunner().invoke(app, ["finetune", *flags, *FIXED, "--resume", "--layer_decay", "0.5"])
    assert result.exit_code == 2
    assert "does not fit these settings" in result.stderr


@pytest.mark.parametrize(
    ("before", "after"), [([], MUON), pytest.param(MUON, [], marks=pytest.mark.slow)], ids=["to Muon", "from Muon"]
)
def test_a_checkpoint_of_another_optimizer_is_status_2(before: list[str], after: list[str], flags: list[str]) -> None:
    with pytest.raises(CrashError):
        train("finetune", [*flags, *before], lambda trainer: trainer.add_callback(CrashAt(6)))
    result = CliRunner().invoke(app, ["finetune", *flags, *after, *FIXED, "--resume"])
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert re.search(r"does not fit these settings: .*group.*--matrix-learning-rate or none", said), said


def test_stopped_by_itself_is_status_3(flags: list[str], colours: Path, tmp_path: Path) -> None:
    for image in (colours / "train").rglob("*.png"):
        copy = tmp_path / "data" / image.relative_to(colours)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(image.read_bytes()[: 300 if image.stem in "012" else None])
    flags = [*flags, "--data", str(tmp_path / "data"), "--max_broken_images", "0", "--eval_strategy", "no"]
    assert training.train("finetune", flags) == training.STOPPED


def command(*arguments: object) -> Result:
    """Runs a command that must succeed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_a_model_of_one_channel_is_taken_by_all_commands(flags: list[str], colours: Path, tmp_path: Path) -> None:
    grey = ["--image_mean", "0.5", "--image_std", "0.25"]
    command("finetune", *flags, *grey, "--max_steps", "2", "--save_strategy", "no")
    final, image = tmp_path / "run" / "final", colours / "validation" / "red" / "0.png"
    assert json.loads((final / "config.json").read_text())["num_channels"] == 1
    assert "32 x 32 pixels of 1 channel, in" in command("info", final).stdout
    assert len(json.loads(command("classify", image, "--model", final, "--json").stdout)["predictions"]) == 3
    command("features", image, "--model", final, "--output", tmp_path / "features.safetensors")
    assert load_file(tmp_path / "features.safetensors")["features"].shape == (1, 32)
    command("inspect", image, "--model", final, "--output", tmp_path / "inspection")
    evaluated = command("evaluate", colours, "--model", final, "--output", tmp_path, "--json")
    assert json.loads(evaluated.stdout)["images"] == 15
    assert f"evaluated: 15 images of {colours}, split 'validation'" in evaluated.stderr.replace("\n", "")
    assert (tmp_path / "mistakes.png").is_file()
    # Its channels, mean and deviation are those of the model.
    further = [*flags, *MASKS, "--model", final, "--model_fields", "{}", "--max_steps", "2", "--save_strategy", "no"]
    command("pretrain", *further, "--output_dir", tmp_path / "masked")
    processor = json.loads((tmp_path / "masked" / "final" / "preprocessor_config.json").read_text())
    assert (processor["image_mean"], processor["image_std"]) == ([0.5], [0.25])
    command("reconstruct", image, "--model", tmp_path / "masked" / "final", "--output", tmp_path / "drawn.png")


def save_tagged(source: Path) -> None:
    """Images of three colours, which are `colour` and `warm` or `cold`, or nothing, in a table and in a folder."""
    draw = np.random.default_rng(0)
    tags = {"red": ["colour", "warm"], "blue": ["cold", "colour"], "green": []}
    for split, count in (("train", 16), ("validation", 8)):
        (source / split).mkdir(parents=True)
        lines = []
        for name, shown in tags.items():
            for index in range(count // 2):
                pixels = np.clip(draw.normal(0, 60, (40, 48, 3)) + np.array(COLOURS[name]), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(source / split / f"{name}-{index}.png")
                lines.append(json.dumps({"file_name": f"{name}-{index}.png", "labels": shown}))
        (source / split / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(
    "mixed", [[], ["--mixup", "0.8", "--cutmix", "1.0", "--dataloader_drop_last", "true"]], ids=str
)
def test_several_labels_for_an_image(flags: list[str], mixed: list[str], tmp_path: Path) -> None:
    source, final = tmp_path / "tagged", tmp_path / "run" / "final"
    save_tagged(source)
    (source / "validation" / "red-0.png").write_text("broken")
    best = ["--load_best_model_at_end", "true", "--metric_for_best_model", "mAP", "--save_strategy", "epoch"]
    # In fp32, as `evaluate` computes.
    told = ["--num_train_epochs", "8", "--bf16", "false"]
    trained = command("finetune", *flags, *mixed, "--data", source, *told, *best)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["eval_images"], results["eval_unreadable"]) == (11, 1)
    # Chance is 11/3 labels of 11 images.
    assert results["eval_mAP"] > 0.9
    assert trained.stdout.startswith("11 images evaluated: mAP ")
    assert trained.stdout.splitlines()[1].split() == ["label", "average", "precision", "recall", "images"]
    assert (tmp_path / "run" / "average-precision.png").is_file()
    config = json.loads((final / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "cold", "1": "colour", "2": "warm"}

    image = source / "validation" / "blue-0.png"
    (answer,) = map(json.loads, command("classify", image, "-m", final, "--json").stdout.splitlines())
    probabilities = {each["label"]: each["probability"] for each in answer["predictions"]}
    assert probabilities["cold"] > probabilities["warm"]
    command("features", image, "--model", final, "--output", tmp_path / "features.safetensors")

    result = CliRunner().invoke(app, ["evaluate", str(source), "-m", str(final), "-o", str(tmp_path), "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["unreadable"][0].endswith("red-0.png: not an image")
    for name in ("mAP", "f1", "exact", "loss"):
        assert found[name] == pytest.approx(results[f"eval_{name}"], abs=1e-5)
    assert found["average_precision"] == pytest.approx(results["average_precision"])
    assert (tmp_path / "average-precision.png").is_file()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--class_weights", "balanced"], "--class-weights is for images of one label"),
        (["--label_smoothing_factor", "0.1"], "--label-smoothing-factor is for images of one label"),
        (
            ["--metric_for_best_model", "top1", "--load_best_model_at_end", "true", "--save_strategy", "epoch"],
            "--metric-for-best-model is 'top1'; expected loss or mAP or f1 or exact",
        ),
    ],
)
def test_what_several_labels_do_not_take(flags: list[str], more: list[str], sentence: str, tmp_path: Path) -> None:
    save_tagged(tmp_path / "tagged")
    result = CliRunner().invoke(app, ["finetune", *flags, "--data", str(tmp_path / "tagged"), *more])
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())


def test_what_a_library_refuses_is_status_2(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    result = CliRunner().invoke(app, ["finetune", *flags, "--choose-settings", "false", "--optim", "adamw_8bit"])
    assert (result.exit_code, "--optim adamw_8bit cannot be used" in " ".join(result.stderr.split())) == (2, True)
    result = CliRunner().invoke(app, ["finetune", *flags, "--report-to", "wandb"])
    assert result.exit_code == 2
    assert "--report-to cannot be used: WandbCallback requires wandb" in " ".join(result.stderr.split())


def test_a_tracker_that_cannot_start_is_status_2(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class NoNetworkError(Exception):
        """What a tracker may raise."""

    class Tracker(TrainerCallback):
        def on_train_begin(self, *args: object, **rest: object) -> None:
            raise NoNetworkError("The server cannot be reached.")

    Tracker.__module__ = "transformers.integrations.made"
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    result = CliRunner().invoke(app, ["finetune", *flags, "--report-to", "wandb"])
    assert result.exit_code == 2
    assert "--report-to cannot be used: The server cannot be reached. Fix it" in " ".join(result.stderr.split())


def test_a_finetuning_without_a_model_starts_from_the_one_that_ships(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    where = flags.index("--model")
    without = [*flags[:where], *flags[where + 4 :]]
    assert training.train("finetune", [*without, "--dry-run", "--as-json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["model"] == str(shipped_model())
    assert "no --model given: starting from the" in " ".join(err.split())
    result = CliRunner().invoke(app, ["pretrain", *without])
    assert (result.exit_code, "--model is missing" in result.stderr) == (2, True)


def test_a_training_prints_recalls_and_figures(flags: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["finetune", *flags])
    assert result.exit_code == 0
    assert re.search(r"label +recall", result.stdout)
    assert "drawn:" in result.stderr
    assert (tmp_path / "run" / "confusion.png").is_file()
