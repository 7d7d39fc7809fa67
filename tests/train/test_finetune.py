"""Fine-tuning: it learns, from new and from pre-trained weights, as a whole and with LoRA."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import pipeline

import peers
import swinv2
from swinv2.errors import UsageError
from swinv2.train.running import run_training
from trainings import AUGMENTED, CONFIG, make, train, weights


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


def test_everything_at_once(flags: list[str], tmp_path: Path) -> None:
    trainer = train("finetune", [*flags, *AUGMENTED, "--layer_decay", "0.8", "--lr-scheduler-type", "cosine"])
    assert len(trainer.optimizer.param_groups) > 4
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


def test_the_encoder_goes_on_into_a_classifier(flags: list[str], tmp_path: Path) -> None:
    train("pretrain", flags)
    final = tmp_path / "run" / "final"
    more = ["--model", str(final), "--model_fields", "{}", "--output_dir", str(tmp_path / "fine")]
    trainer = make("finetune", flags + more)
    before = weights(final)
    shared = [name for name in trainer.model.state_dict() if not name.startswith("classifier")]
    assert shared
    assert all(torch.equal(trainer.model.state_dict()[name], before[name]) for name in shared)
