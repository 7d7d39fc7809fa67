"""The linear probe: its fit is the optimum, it is saved as other classifiers, and the features serve again."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import pipeline

import peers
import swinv2
from colours import draw_colours
from swinv2.cli import training
from swinv2.errors import UsageError
from swinv2.predict.shipped import shipped_model
from swinv2.train import linear, probe
from swinv2.train.choices import settings_of, with_chosen_settings
from swinv2.train.data.sources import open_dataset
from swinv2.train.evaluate import evaluate
from swinv2.train.features import Features
from swinv2.train.finetune import FinetuneParts, open_finetuning
from swinv2.train.linear import PENALTIES
from swinv2.train.probe import SUFFICIENT_LOSS, Probe, make_probe, may_suffice, sufficient_probe
from swinv2.train.settings import FinetuneSettings, parse_settings
from trainings import CONFIG, weights


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A model with random weights, which tell colours apart."""
    model = peers.draw_weights(swinv2.Swinv2ForMaskedImageModeling(swinv2.Swinv2Config(**CONFIG, encoder_stride=4)))
    model.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture(autouse=True)
def few_folds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fold, for speed."""
    if "tmp_path" in request.fixturenames:
        monkeypatch.setattr(linear, "ENOUGH_HELD_OUT", 1)


def flags_of(data: Path, model: str, run: Path, *flags: str) -> list[str]:
    given = ["--data", str(data), "--model", model, "--output-dir", str(run), "--linear-probe", "--use-cpu"]
    return [*given, "--eval-strategy", "epoch", "--dataloader-num-workers", "0", *flags]


def prepare(data: Path, model: str, run: Path, *flags: str) -> Probe:
    return make_probe(parse_settings(FinetuneSettings, flags_of(data, model, run, *flags), "finetune"))


def test_it_learns_and_serves(base: str, colours: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = prepare(colours, base, run).run()
    assert results == json.loads((run / "results.json").read_text())
    assert results["eval_top1"] > 0.9
    assert (results["images"], results["eval_images"], results["eval_unreadable"]) == (36, 15, 0)
    assert results["penalty"] in PENALTIES
    assert set(results["recall"]) == {"blue", "green", "red"}
    assert (run / "confusion.png").is_file()
    # The saved model gets from files what was reported.
    found, _ = evaluate(str(run / "final"), str(colours), workers=0)
    assert found.top1 == results["eval_top1"]
    assert found.loss == pytest.approx(results["eval_loss"], rel=1e-3)
    before, after = weights(Path(base)), weights(run / "final")
    shared = [name for name in after if not name.startswith("classifier")]
    assert shared
    assert all(torch.equal(before[name], after[name]) for name in shared)
    swinv2.register()
    answers = pipeline("image-classification", str(run / "final"))(str(colours / "validation" / "red" / "0.png"))
    assert {answer["label"] for answer in answers} == {"blue", "green", "red"}


def test_a_second_run_uses_the_features(
    base: str, colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(colours, base, tmp_path / "run").run()
    assert "computed before" not in caplog.text
    again = prepare(colours, base, tmp_path / "run", "--resume")
    monkeypatch.setattr(type(again.store.model), "forward", None)
    assert again.run() == first
    assert "features of 36 of 36 images" in caplog.text
    assert "features of 15 of 15 images" in caplog.text
    # Other images are held out, and the features are the same.
    other = prepare(colours, base, tmp_path / "run", "--seed", "1").run()
    assert other["held_out_losses"] != first["held_out_losses"]


def test_the_image_size_changes_the_features(base: str, colours: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(colours, base, run).run()
    results = prepare(colours, base, run, "--image-size", "64", "--window-size", "8").run()
    assert results["eval_images"] == 15
    assert len(list((run / "features").iterdir())) == 4
    config = swinv2.Swinv2Config.from_pretrained(run / "final")
    assert (config.image_size, config.window_size) == (64, 8)
    assert json.loads((run / "final" / "preprocessor_config.json").read_text())["size"] == {"height": 64, "width": 64}
    found, _ = evaluate(str(run / "final"), str(colours), workers=0)
    assert found.top1 == results["eval_top1"]


def test_new_weights_and_presets_are_a_baseline(colours: Path, tmp_path: Path) -> None:
    fields = ["--model-fields", json.dumps({name: CONFIG[name] for name in CONFIG if name != "num_labels"})]
    results = prepare(colours, "new", tmp_path / "run", *fields).run()
    assert results["eval_images"] == 15


def test_classes_may_count_the_same(base: str, tmp_path: Path) -> None:
    for split, count in (("train", 4), ("validation", 2)):
        draw_colours(tmp_path / "data" / split, count)
    for index in (2, 3):
        (tmp_path / "data" / "train" / "red" / f"{index}.png").unlink()
    plain = prepare(tmp_path / "data", base, tmp_path / "run").run()
    weighed = prepare(tmp_path / "data", base, tmp_path / "run", "--class-weights", "balanced")
    assert weighed.class_weights is not None
    assert weighed.class_weights[2] == 2 * weighed.class_weights[0]
    assert weighed.run()["held_out_losses"] != plain["held_out_losses"]


def test_unreadable_images_are_counted(base: str, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        draw_colours(tmp_path / "data" / split, 3)
        (tmp_path / "data" / split / "red" / "0.png").write_text("broken")
    results = prepare(tmp_path / "data", base, tmp_path / "run").run()
    assert (results["images"], results["unreadable"]) == (8, 1)
    assert (results["eval_images"], results["eval_unreadable"]) == (8, 1)
    with pytest.raises(UsageError, match="more than --max-broken-images 0"):
        prepare(tmp_path / "data", base, tmp_path / "run", "--max-broken-images", "0").run()
    for file in (tmp_path / "data" / "validation").rglob("*.png"):
        file.write_text("broken")
    with pytest.raises(UsageError, match="has no readable image"):
        prepare(tmp_path / "data", base, tmp_path / "run").run()


def test_the_folder_of_another_training(base: str, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-4").mkdir(parents=True)
    with pytest.raises(UsageError, match="has checkpoints of another training; give another --output-dir"):
        prepare(colours, base, tmp_path / "run")


def test_the_command(base: str, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = flags_of(colours, base, tmp_path / "run")
    assert training.train("finetune", [*flags, "--dry-run", "--as-json"]) == 0
    preview = json.loads(capsys.readouterr().out)
    assert preview["features"] == {"channels": 32, "missing": {"train": 36, "evaluated": 15}}
    assert preview["model"]["learning"] == 3 * 32 + 3
    assert preview["data"]["images"] == 36
    assert not (tmp_path / "run" / "features").exists()
    assert training.train("finetune", [*flags, "--as-json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "run" / "results.json").read_text())
    # With settings that are chosen from the data.
    assert training.train("finetune", [*flags[:-4], "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "a linear classifier of 32 features; features of 0 images (train) and 0 images (evaluated)" in printed
    assert "learning_rate" not in printed
    assert training.train("finetune", flags) == 0
    out, err = capsys.readouterr()
    numbers = r"top-1 [\d.]+%, loss [\d.e-]+, training loss [\d.e-]+, penalty [\d.e-]+"
    assert re.match(rf"15 images evaluated: {numbers}\n", out)
    assert out.split("\n")[1].split() == ["label", "recall", "images"]
    assert f"drawn: {tmp_path / 'run' / 'confusion.png'}" in err


@pytest.mark.parametrize("given", [("8", "0"), ("64", "2"), None])
def test_batch_size_and_processes_may_be_given(
    given: tuple[str, str] | None, base: str, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the values that are the defaults of transformers."""
    made = prepare(colours, base, tmp_path / "run")
    if given:
        flags = ["--per-device-eval-batch-size", given[0], "--dataloader-num-workers", given[1]]
        made = prepare(colours, base, tmp_path / "run", *flags)
    else:
        del made.args.told["dataloader_num_workers"]
    seen: list[tuple[int, int | None]] = []

    def note(dataset: Any, *, batch_size: int, workers: int | None, **_: Any) -> Features:
        seen.append((batch_size, workers))
        return Features(torch.zeros(len(dataset), 32), torch.zeros(len(dataset), dtype=torch.long), [])

    monkeypatch.setattr(made.store, "features_of", note)
    made._features(made.train)
    assert seen == [(int(given[0]), int(given[1])) if given else (64, None)]


def test_images_set_aside_share_the_file_of_features(base: str, colours: Path, tmp_path: Path) -> None:
    first = prepare(colours / "train", base, tmp_path / "run", "--held-out-share", "0.25").run()
    assert (first["images"], first["eval_images"]) == (27, 9)
    assert len(list((tmp_path / "run" / "features").iterdir())) == 1
    other = prepare(colours / "train", base, tmp_path / "run", "--held-out-share", "0.25", "--seed", "1")
    assert other.preview()["features"]["missing"] == {"train": 0, "evaluated": 0}


@pytest.mark.parametrize(
    "given",
    [
        *("--learning-rate=1e-4", "--num-train-epochs=5", "--mixup=0.8", "--layer-decay=0.8", "--lora"),
        *("--frozen-stages=1", "--auto-augment=rand-m9", "--ema-decay=0.9", "--per-device-train-batch-size=16"),
        *("--weight-decay=0.1", "--head-map=x", "--bf16", "--drop-path-rate=0.1", "--matrix-learning-rate=0.01"),
    ],
)
def test_settings_without_effect(given: str, base: str, colours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{given.partition('=')[0]} has no effect with --linear-probe"):
        prepare(colours, base, tmp_path / "run", given)


def test_the_cpu_is_given_and_never_chosen(
    base: str, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the CPU is chosen, it is for bf16, which a probe does not have."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    flags = flags_of(colours, base, tmp_path / "run")
    assert parse_settings(FinetuneSettings, flags, "finetune").use_cpu
    flags.remove("--use-cpu")
    settings = parse_settings(FinetuneSettings, flags, "finetune")
    chosen = with_chosen_settings(settings, open_dataset(str(colours), "train"), None).chosen
    assert "per_device_eval_batch_size" in chosen
    assert not {"use_cpu", "bf16"} & set(chosen)


def test_several_labels_are_for_a_whole_training(base: str, colours: Path, tmp_path: Path) -> None:
    rows = {"image": [str(colours / "train" / "red" / "0.png")] * 2, "label": [["a"], ["a", "b"]]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Sequence(datasets.Value("string"))})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UsageError, match=r"--linear-probe is for images of one label, and .* has lists"):
        prepare(tmp_path / "train.parquet", base, tmp_path / "run", "--eval-data", str(tmp_path / "train.parquet"))


def open_parts(colours: Path, tmp_path: Path, **told: Any) -> FinetuneParts:
    """A fine-tuning of the model that ships, with chosen settings."""
    usual = {"data": str(colours), "model": str(shipped_model()), "output_dir": str(tmp_path), "choose_settings": True}
    return open_finetuning(settings_of({**usual, "use_cpu": True, **told}))


def test_a_probe_that_is_right_makes_a_training_needless(
    colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red, green and blue are told apart by the features; random labels are not."""
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    found = sufficient_probe(open_parts(colours, tmp_path))
    assert found is not None
    assert "a linear probe of the backbone's features is right about images that it has not seen" in caplog.text
    results = found.run()
    assert min(results["held_out_losses"].values()) <= SUFFICIENT_LOSS
    assert results["eval_top1"] == 1.0
    assert (tmp_path / "final" / "model.safetensors").is_file()
    parts = open_parts(colours, tmp_path / "other")
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    monkeypatch.setattr(probe, "SUFFICIENT_LOSS", 0.0)
    assert sufficient_probe(parts) is None
    # The training begins as if no probe had been tried.
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in parts.model.parameters())


@pytest.mark.parametrize(
    "told",
    [{"num_train_epochs": 2}, {"linear_probe": False}, {"model": "new"}, {"learning_rate": 1e-3}, {"mixup": 0.0}],
    ids=str,
)
def test_no_probe_is_tried_if_a_training_is_asked_for(told: dict[str, Any], colours: Path, tmp_path: Path) -> None:
    assert not may_suffice(open_parts(colours, tmp_path, **told))
    assert may_suffice(open_parts(colours, tmp_path, seed=3, image_size=[64]))


def test_many_images_are_not_tried(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MOST_TO_TRY", 10)
    assert not may_suffice(open_parts(colours, tmp_path))


def test_a_dry_run_says_that_a_probe_is_tried(
    colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    assert sufficient_probe(open_parts(colours, tmp_path / "run", dry_run=True)) is None
    assert "first, a linear probe is fitted" in caplog.text
    assert not (tmp_path / "run").exists()
