"""Fine-tuning: it learns, from new and from pre-trained weights, as a whole and with LoRA."""

import json
import logging
import shutil
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
from swinv2.errors import UsageError
from swinv2.train.finetune import balanced_weights, cross_entropy
from swinv2.train.running import run_training
from swinv2.train.trainer import SwinTrainer
from trainings import AUGMENTED, CONFIG, CrashAt, CrashError, log, make, train, weights


def test_it_learns_and_serves(flags: list[str], colours: Path, tmp_path: Path) -> None:
    train("finetune", flags)
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["eval_top1"] == 1.0
    assert results["eval_images"] == 15
    swinv2.register()
    classify = pipeline("image-classification", str(run / "final"))
    answers = classify(str(colours / "validation" / "red" / "0.png"))
    assert answers[0]["label"] == "red"


def test_it_ends_with_recalls_and_figures(flags: list[str], colours: Path, tmp_path: Path) -> None:
    # One image too many of a class it cannot know: the answer to it is a mistake to draw.
    evaluation = tmp_path / "evaluation"
    shutil.copytree(colours / "validation", evaluation)
    shutil.copy(evaluation / "red" / "0.png", evaluation / "blue" / "red.png")
    train("finetune", [*flags, "--eval_data", str(evaluation), "--eval_split", "train"])
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["recall"] == {"blue": 5 / 6, "green": 1.0, "red": 1.0}
    assert results["eval_top1"] == 15 / 16
    assert results["figures"] == [str(run / "confusion.png"), str(run / "mistakes.png")]
    assert all(Path(file).stat().st_size > 1000 for file in results["figures"])


def test_without_a_split_a_share_is_set_aside(
    flags: list[str], colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    alone = [*flags, "--data", str(colours / "train")]
    trainer: Any = make("finetune", [*alone, "--held_out_share", "0.25"])
    train_part, held_out = trainer.train_dataset.dataset, trainer.eval_dataset.dataset
    assert [int(count) for count in np.bincount(train_part.labels())] == [9, 9, 9]
    assert [int(count) for count in np.bincount(held_out.labels())] == [3, 3, 3]
    assert not {sample.name for sample in train_part} & {sample.name for sample in held_out}
    assert "9 of its images, about 25% of each class, are set aside" in caplog.text
    again: Any = make("finetune", [*alone, "--held_out_share", "0.25"])
    assert (again.eval_dataset.dataset.chosen == held_out.chosen).all()
    # The split that somebody names is never replaced.
    with pytest.raises(UsageError, match="expected 'test'"):
        make("finetune", [*alone, "--eval_split", "test"])
    # Another seed sets the same images aside, and a small share at least one of each class.
    other: Any = make("finetune", [*alone, "--held_out_share", "0.01", "--seed", "7"])
    few: Any = make("finetune", [*alone, "--held_out_share", "0.01"])
    assert (other.eval_dataset.dataset.chosen == few.eval_dataset.dataset.chosen).all()
    assert [int(count) for count in np.bincount(few.eval_dataset.dataset.labels())] == [1, 1, 1]


def test_what_cannot_be_evaluated_is_named(
    flags: list[str], colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    shutil.copytree(colours, tmp_path / "data")
    (tmp_path / "data" / "validation" / "red" / "0.png").write_bytes(b"no image")
    shutil.rmtree(tmp_path / "data" / "validation" / "blue")
    trainer = make("finetune", [*flags, "--data", str(tmp_path / "data")])
    assert "there is no image to evaluate of 'blue'" in caplog.text
    assert trainer.evaluate()["eval_unreadable"] == 1
    assert "0.png: not an image" in caplog.text
    caplog.clear()
    trainer.evaluate()
    assert "skipped" not in caplog.text


def test_balanced_weights() -> None:
    # 2 classes with images, 8 images: each class weighs 4 altogether.
    assert balanced_weights(np.array([6, 2, 0])).tolist() == pytest.approx([8 / 12, 8 / 4, 0.0])
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    weights = torch.tensor([3.0, 0.5])
    expected = (3 * plain[0] + 0.5 * plain[1] + 0.5 * plain[2]) / 3
    torch.testing.assert_close(cross_entropy(logits, labels, weights=weights), expected)
    # Over all batches, however small, both classes weigh the same: one image of 99 here counts as much as the others.
    counts = np.array([99, 1])
    one_by_one = [
        cross_entropy(torch.zeros(1, 2), torch.tensor([label]), weights=balanced_weights(counts)).item()
        for label in (0, 1)
    ]
    assert 99 * one_by_one[0] == pytest.approx(one_by_one[1])


def test_unbalanced_classes_are_named(
    flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    draw_colours(tmp_path / "data" / "train", 9)
    for image in sorted((tmp_path / "data" / "train" / "green").iterdir())[:6]:
        image.unlink()
    few = [*flags, "--data", str(tmp_path / "data"), "--eval_strategy", "no"]
    assert make("finetune", few).class_weights is None  # type: ignore[attr-defined]
    assert "'blue' has 9 images, 'green' has 3; with --class-weights balanced" in caplog.text
    caplog.clear()
    trainer: Any = make("finetune", [*few, "--class_weights", "balanced"])
    assert trainer.class_weights.tolist() == pytest.approx([21 / 27, 21 / 9, 21 / 27])
    assert "unbalanced" not in caplog.text
    # The loss that is reported for other images has no weights.
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.eval()
    unweighted = trainer.compute_loss(trainer.model, dict(batch))
    trainer.model.train()
    assert not torch.equal(trainer.compute_loss(trainer.model, dict(batch)), unweighted)


BEST = ["--save_strategy", "epoch", "--load_best_model_at_end", "true", "--metric_for_best_model", "top1"]


def test_early_stopping_counts_in_the_log(flags: list[str], tmp_path: Path) -> None:
    scores = iter([0.3, 0.5, 0.5, 0.4, 0.2, 0.1, 0.6])

    def prepare(trainer: Any) -> None:
        trainer.compute_metrics = lambda prediction: {"top1": next(scores)}

    more = [*BEST, "--early_stopping", "3", "--num_train_epochs", "8", "--learning_rate", "1e-5"]
    trainer = make("finetune", [*flags, *more])
    prepare(trainer)
    trainer.add_callback(CrashAt(22))
    with pytest.raises(CrashError):
        trainer.train()
    # Of the equal evaluations of epochs 2 and 3 the later one is the best; a run that resumes goes on counting.
    assert trainer.state.best_global_step == 15
    again = make("finetune", [*flags, *more, "--resume"])
    prepare(again)
    again.train(resume_from_checkpoint=again.args.resume_from_checkpoint)
    assert (again.state.global_step, again.state.best_global_step) == (30, 15)
    # Once stopped, it takes no further step.
    third = make("finetune", [*flags, *more, "--resume"])
    third.train(resume_from_checkpoint=third.args.resume_from_checkpoint)
    assert third.state.global_step == 30


def test_the_last_evaluation_runs_once(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[str] = []
    loop = SwinTrainer.evaluation_loop
    monkeypatch.setattr(SwinTrainer, "evaluation_loop", lambda *all, **rest: (loops.append(""), loop(*all, **rest))[1])
    trainer = train("finetune", flags)
    assert len(loops) == 3
    assert "eval_top1" in json.loads((tmp_path / "run" / "results.json").read_text())
    # After the best weights are loaded, which are not the last ones, they are evaluated.
    loops.clear()
    more = ["--output_dir", str(tmp_path / "worst"), *BEST, "--metric_for_best_model", "loss"]
    trainer = train("finetune", [*flags, *more, "--greater_is_better", "true"])
    assert trainer.state.best_global_step == 5
    assert len(loops) == 4
    results = json.loads((tmp_path / "worst" / "results.json").read_text())
    assert (results["step"], results["kept_step"], "stopped_early_of" in results) == (15, 5, False)


@pytest.mark.parametrize("metric", ["accuracy", "top5"])
def test_an_unknown_metric_is_an_error_at_once(metric: str, flags: list[str]) -> None:
    more = [*BEST, "--metric_for_best_model", metric]
    with pytest.raises(UsageError, match=f"--metric-for-best-model is '{metric}'; expected loss or top1"):
        make("finetune", [*flags, *more])
    with pytest.raises(UsageError, match=f"--metric-for-best-model is '{metric}'; expected loss"):
        make("pretrain", [*flags, *more])


def test_everything_at_once(flags: list[str], tmp_path: Path) -> None:
    trainer = train("finetune", [*flags, *AUGMENTED, "--layer_decay", "0.8", "--lr-scheduler-type", "cosine"])
    assert len(trainer.optimizer.param_groups) > 4
    # The log has the highest rate, which is the head's.
    rates = [entry["learning_rate"] for entry in log(tmp_path / "run") if "learning_rate" in entry]
    assert max(rates) > 0.9 * trainer.args.learning_rate
    assert trainer.average is not None
    # Leaving out the last images of an epoch is for training.
    assert json.loads((tmp_path / "run" / "results.json").read_text())["eval_images"] == 15
    # What is kept is the average, which differs from the last weights.
    kept, last = weights(tmp_path / "run" / "final"), trainer.model.state_dict()
    means = dict(trainer.average.module.named_parameters())
    assert all(torch.equal(kept[name], mean) for name, mean in means.items())
    assert any(not torch.equal(kept[name], last[name]) for name in means)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers
def test_lora_learns_little(flags: list[str], tmp_path: Path) -> None:
    # A fresh model's post-norms are zero: nothing before them would ever learn beside frozen norms.
    base = peers.draw_weights(swinv2.Swinv2ForImageClassification(swinv2.Swinv2Config(**CONFIG)))
    base.save_pretrained(tmp_path / "base")
    more = ["--model", str(tmp_path / "base"), "--model_fields", "{}", "--lora", "true", "--lora_rank", "2"]
    trainer = make("finetune", flags + more)
    learning = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "classifier" in name for name in learning)
    run_training(trainer)
    final = tmp_path / "run" / "final"
    assert (final / "adapter" / "adapter_model.safetensors").is_file()
    merged, plain = weights(final), base.state_dict()
    changed = {name for name, value in plain.items() if not torch.equal(merged[name], value)}
    assert {name.split(".")[-2] for name in changed} == {"query", "value", "classifier"}


def test_labels_without_a_class(flags: list[str], tmp_path: Path) -> None:
    rows = {"image": [np.zeros((8, 8, 3), np.uint8)] * 3, "label": [0, 1, 2]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "names.txt").write_text("cat\ndog\n\n")
    secret = datasets.Dataset.from_dict(rows | {"label": [0, -1, 1]}, features=features)
    secret.to_parquet(tmp_path / "secret.parquet")
    names = ["--label_names_file", str(tmp_path / "names.txt")]
    with pytest.raises(UsageError, match="has a label -1, but there are 2 classes"):
        make("finetune", [*flags, *names, "--data", str(tmp_path / "secret.parquet"), "--eval_strategy", "no"])
    more = ["--data", str(tmp_path / "train.parquet"), *names]
    with pytest.raises(UsageError, match="has a label 2, but there are 2 classes"):
        make("finetune", [*flags, *more, "--eval_strategy", "no"])


def table(folder: Path, colours: Path, names: list[str], labels: list[str]) -> str:
    """A parquet file of images that have these labels, in the order of `names`."""
    files = sorted((colours / "validation" / "red").iterdir())
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {"image": [str(file) for file in files[: len(labels)]], "label": labels}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "evaluated.parquet")
    return str(folder / "evaluated.parquet")


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    # The commands switch it off.
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    return caplog


def test_classes_to_evaluate_are_matched_by_name(
    flags: list[str], colours: Path, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    source = table(tmp_path, colours, ["red", "owl", "blue"], ["blue", "owl", "red", "owl"])
    trainer = make("finetune", [*flags, "--eval_data", source])
    assert trainer.model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    evaluated: Any = trainer.eval_dataset
    assert [example["labels"] for example in evaluated] == [0, 2]
    assert (
        "classes that the training data lacks; their images are left out of the evaluation: 'owl' (2)" in warnings.text
    )
    source = table(tmp_path, colours, ["owl"], ["owl"])
    with pytest.raises(UsageError, match=r"has the classes 'owl', and the training data has none of them"):
        make("finetune", [*flags, "--eval_data", source])


def test_a_class_that_only_the_evaluation_has_is_no_output(
    flags: list[str], tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    draw_colours(tmp_path / "data" / "train", 2)
    draw_colours(tmp_path / "data" / "validation", 1)
    shutil.rmtree(tmp_path / "data" / "train" / "green")
    (tmp_path / "data" / "train" / "empty").mkdir()
    trainer = make("finetune", [*flags, "--data", str(tmp_path / "data")])
    assert trainer.model.config.id2label == {0: "blue", 1: "red"}
    assert "lacks; their images are left out of the evaluation: 'green' (1)" in warnings.text
    assert "empty (empty)" in warnings.text


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers
@pytest.mark.parametrize("learning", [[], ["--lora", "true"]])
def test_a_run_resumes_with_its_classes_only(flags: list[str], learning: list[str], tmp_path: Path) -> None:
    draw_colours(tmp_path / "data" / "train", 3)
    more = ["--data", str(tmp_path / "data"), "--eval_strategy", "no", "--max_steps", "1", *learning]
    run_training(make("finetune", [*flags, *more]))
    make("finetune", [*flags, *more, "--resume", "true"])
    (tmp_path / "data" / "train" / "red").rename(tmp_path / "data" / "train" / "amber")
    with pytest.raises(UsageError, match=r"was trained with other classes than the data has now: \['amber', 'red'\]"):
        make("finetune", [*flags, *more, "--resume", "true"])


def test_the_encoder_goes_on_into_a_classifier(flags: list[str], tmp_path: Path) -> None:
    train("pretrain", flags)
    final = tmp_path / "run" / "final"
    more = ["--model", str(final), "--model_fields", "{}", "--output_dir", str(tmp_path / "fine")]
    trainer = make("finetune", flags + more)
    before = weights(final)
    shared = [name for name in trainer.model.state_dict() if not name.startswith("classifier")]
    assert shared
    assert all(torch.equal(trainer.model.state_dict()[name], before[name]) for name in shared)
