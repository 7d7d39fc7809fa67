"""The linear probe: its fit is the optimum, it is saved as other classifiers, and the features serve again."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import pipeline

import peers
import swinv2
from colours import draw_colours
from swinv2.cli import training
from swinv2.errors import UsageError
from swinv2.train import probe
from swinv2.train.choices import with_chosen_settings
from swinv2.train.data.sources import open_dataset
from swinv2.train.evaluate import evaluate
from swinv2.train.features import Features
from swinv2.train.probe import (
    FOLDS,
    PENALTIES,
    USUAL_PENALTY,
    Classifier,
    Probe,
    choose_penalty,
    divide_into_folds,
    fit_classifier,
    fit_to_features,
    make_probe,
)
from swinv2.train.settings import FinetuneSettings, parse_settings
from trainings import CONFIG, weights


def draw_features(count: int, channels: int = 5, classes: int = 3, noise: float = 1.5) -> Features:
    """Noisy features around a centre for each class; one channel has a large mean and scale, one is constant."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, count)
    values = draw.normal(size=(classes, channels))[labels] + noise * draw.normal(size=(count, channels))
    values[:, 0] = 300 + 50 * values[:, 0]
    values[:, 1] = 0.1
    return Features(torch.tensor(values, dtype=torch.float32), torch.tensor(labels), [])


def gradient(
    classifier: Classifier, inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the mean cross entropy + penalty / 2 * sum(weight ** 2), as in a textbook."""
    weight, bias = classifier.weight.numpy(), classifier.bias.numpy()
    logits = inputs @ weight.T + bias
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    errors = (probabilities - np.eye(len(bias))[labels]) * (weights / weights.sum())[:, None]
    return errors.T @ inputs + penalty * weight, errors.sum(0)


@pytest.mark.parametrize("logits_at_once", [2**24, 100])
@pytest.mark.parametrize("penalty", [1.0, 1e-3])
def test_the_fit_is_the_optimum(penalty: float, logits_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_LOGITS_AT_ONCE", logits_at_once)
    monkeypatch.setattr(probe, "TOLERANCE", 1e-7)
    draw = np.random.default_rng(0)
    inputs, labels = draw.normal(size=(200, 5)), draw.integers(0, 3, 200)
    counts = draw.random(200)
    start = Classifier(torch.ones(3, 5, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    found = fit_classifier(torch.tensor(inputs), torch.tensor(labels), torch.tensor(counts), penalty, start)
    assert found.weight.abs().max() > 0.01
    # The loss is convex, so where its gradient is zero is the optimum.
    for part in gradient(found, inputs, labels, counts, penalty):
        assert np.abs(part).max() < 2e-6
    # The start is not changed.
    assert torch.equal(start.weight, torch.ones(3, 5, dtype=torch.float64))


def test_standardisation_is_folded_into_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TOLERANCE", 1e-7)
    features = draw_features(300)
    found, penalty, _ = fit_to_features(features, 3)
    values = features.values.double().numpy()
    deviations = values.std(0)
    deviations[1] = 1.0
    inputs = (values - values.mean(0)) / deviations
    standardised = Classifier(
        found.weight * torch.tensor(deviations), found.bias + found.weight @ torch.tensor(values.mean(0))
    )
    for part in gradient(standardised, inputs, features.labels.numpy(), np.ones(300), penalty):
        assert np.abs(part).max() < 1e-5
    # The channel that never changes says nothing.
    assert found.weight[:, 1].abs().max() < 1e-6


def test_weights_count_as_copies_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TOLERANCE", 1e-7)
    features = draw_features(60)
    counts = torch.tensor([1, 2, 3])[features.labels]
    inputs = features.values.double()[:, 2:]
    start = Classifier(torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    weighted = fit_classifier(inputs, features.labels, counts.double(), 0.01, start)
    copies = inputs.repeat_interleave(counts, 0), features.labels.repeat_interleave(counts)
    copied = fit_classifier(*copies, torch.ones(len(copies[0]), dtype=torch.float64), 0.01, start)
    torch.testing.assert_close(weighted.weight, copied.weight, atol=1e-4, rtol=1e-4)


def test_folds_divide_every_class() -> None:
    labels = np.array([0] * 40 + [1] * 25 + [2] * 3 + [3])
    folds = divide_into_folds(labels, 0)
    for label, least, most in ((0, 4, 4), (1, 2, 3), (2, 0, 1)):
        counts = np.bincount(folds[labels == label], minlength=FOLDS)
        assert (counts.min(), counts.max()) == (least, most)
    # Without its only image, a class could not be learned.
    assert folds[-1] == -1
    assert (divide_into_folds(labels, 0) == folds).all()
    assert (divide_into_folds(labels, 1) != folds).any()


@pytest.mark.parametrize(("noise", "weakest", "strongest"), [(0.1, 1e-5, 1e-4), (30.0, 0.1, 10.0)])
def test_noise_needs_a_strong_penalty(noise: float, weakest: float, strongest: float) -> None:
    features = draw_features(120, noise=noise)
    chosen, losses = fit_to_features(features, 3)[1:]
    assert weakest * 0.99 <= chosen <= strongest
    assert losses[chosen] == min(losses.values())
    # The search ends after two that are worse.
    assert list(losses) == list(PENALTIES[: len(losses)])
    assert len(losses) in (len(PENALTIES), PENALTIES.index(chosen) + 3)


@pytest.mark.parametrize(("enough", "folds"), [(1000, 10), (25, 3), (1, 1)])
def test_many_images_need_few_folds(enough: int, folds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = draw_features(100)
    monkeypatch.setattr(probe, "ENOUGH_HELD_OUT", enough)
    sizes: list[int] = []

    def note(inputs: torch.Tensor, *rest: Any) -> Classifier:
        sizes.append(len(inputs))
        return fit_classifier(inputs, *rest)

    monkeypatch.setattr(probe, "fit_classifier", note)
    told: list[None] = []
    inputs = features.values.double()[:, 2:]
    _, losses = choose_penalty(inputs, features.labels, torch.ones(100).double(), 3, 0, lambda: told.append(None))
    assert len(sizes) == folds * len(losses)
    assert all(87 <= size <= 93 for size in sizes)
    assert len(told) == len(losses)


def test_a_single_image_of_each_class(caplog: pytest.LogCaptureFixture) -> None:
    features = Features(torch.eye(3), torch.arange(3), [])
    found, penalty, losses = fit_to_features(features, 3)
    assert (penalty, losses) == (USUAL_PENALTY, {})
    assert "every class has a single image" in caplog.text
    assert (torch.eye(3).double() @ found.weight.T + found.bias).argmax(1).tolist() == [0, 1, 2]


def test_features_that_say_nothing() -> None:
    found, _, _ = fit_to_features(Features(torch.ones(20, 4), torch.arange(20) % 2, []), 2)
    assert found.weight.abs().max() == 0.0


# The whole way


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
        monkeypatch.setattr(probe, "ENOUGH_HELD_OUT", 1)


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
