"""Settings: what a recipe and flags on top of it become, and what is refused."""

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from swinv2.errors import UsageError
from swinv2.train.settings import FinetuneSettings, PretrainSettings, RunSettings, parse_settings


@pytest.fixture
def needed(tmp_path: Path) -> dict[str, Any]:
    """What every training must be told, and what keeps it small."""
    return {
        "data": "pictures",
        "model": "tiny",
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "report_to": "none",
        "dataloader_num_workers": 0,
    }


def parse(needed: dict[str, Any], *flags: str, kind: type[RunSettings] = FinetuneSettings, recipe: str = "") -> Any:
    """Settings from `needed` and flags, above a recipe if there is one."""
    told = [part for name, value in needed.items() for part in (f"--{name}", str(value))]
    if recipe:
        file = Path(needed["output_dir"]).with_name("recipe.yaml")
        file.write_text(recipe)
        told = ["--config", str(file), *told]
    return parse_settings(kind, [*told, *flags], "swinv2 finetune")


class TestRecipes:
    def test_flags_on_top(self, needed: dict[str, Any]) -> None:
        recipe = "weight_decay: 0.1\nmax_grad_norm: 3\nauto_augment: rand-m9-mstd0.5-inc1\n"
        settings = parse(needed, "--weight-decay", "0.2", recipe=recipe)
        assert (settings.weight_decay, settings.max_grad_norm) == (0.2, 3.0)
        assert settings.auto_augment == "rand-m9-mstd0.5-inc1"
        assert settings.layer_decay == 1.0

    def test_what_was_given_is_remembered(self, needed: dict[str, Any]) -> None:
        settings = parse(needed, "--weight-decay", "0.2", recipe="base_rate: 1e-4\nmodel_fields: {embed_dim: 16}\n")
        # A value that is the default anyway is not worth telling.
        expected = {"data": "pictures", "model": "tiny", "use_cpu": True, "weight_decay": 0.2, "base_rate": 1e-4}
        expected["model_fields"] = {"embed_dim": 16}
        assert {name: settings.given[name] for name in expected} == expected
        assert not {"learning_rate", "per_device_train_batch_size"} & set(settings.given)
        assert json.loads(json.dumps(settings.given)) == settings.given

    @pytest.mark.parametrize("name", ["learning_rate", "base_rate", "drop_path_rate"])
    @pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "'0.001'"])
    def test_numbers_that_yaml_takes_for_text(self, needed: dict[str, Any], name: str, text: str) -> None:
        assert getattr(parse(needed, recipe=f"{name}: {text}\n"), name) == 1e-3

    def test_the_other_kinds_of_values(self, needed: dict[str, Any]) -> None:
        recipe = """
            crop_scale: [8e-2, 1]
            image_size: 64
            max_steps: 7
            bf16: false
            logging_nan_inf_filter: true
            window_size: null
            image_mean: [0.5]
            eval_strategy: epoch
            lr_scheduler_type: cosine
            lr_scheduler_kwargs: {num_cycles: 2}
            milestones: []
        """
        settings = parse(needed, recipe=recipe)
        assert (settings.crop_scale, settings.image_size, settings.max_steps) == ([0.08, 1.0], [64], 7)
        assert (settings.bf16, settings.logging_nan_inf_filter, settings.window_size) == (False, True, None)
        assert (settings.image_mean, settings.milestones) == ([0.5], [])
        assert settings.eval_strategy == "epoch"
        assert settings.lr_scheduler_kwargs == {"num_cycles": 2}

    @pytest.mark.parametrize(
        ("text", "windows"),
        [
            ("8", 8),
            ("'8'", 8),
            ("8x16", [8, 16]),
            ("[8, 16]", [8, 16]),
            ("16,16,16,8", [[16, 16], [16, 16], [16, 16], [8, 8]]),
            ("[16, 16, 16, 8]", [16, 16, 16, 8]),
            ("[[8, 16], 8]", [[8, 16], 8]),
            ("null", None),
        ],
    )
    def test_windows(self, text: str, windows: Any, needed: dict[str, Any]) -> None:
        """A recipe says them as a flag does, or as a list; as in the configuration in what is told of settings."""
        settings = parse(needed, recipe=f"window_size: {text}\n")
        assert settings.window_size == settings.given.get("window_size") == windows
        assert json.loads(json.dumps(settings.given)) == settings.given
        if text[0].isdigit():
            assert parse(needed, "--window-size", text).given["window_size"] == windows

    def test_windows_from_python(self, needed: dict[str, Any]) -> None:
        assert FinetuneSettings(**needed, window_size=(8, 16)).window_size == [8, 16]
        assert FinetuneSettings(**needed, window_size=[(8, 16), 8]).window_size == [[8, 16], 8]
        with pytest.raises(UsageError, match=r"--window-size is \(\); expected tokens such as 8"):
            FinetuneSettings(**needed, window_size=())

    @pytest.mark.parametrize("text", ["[]", "{}", "[0, 8]", "[8, 16, wide]", "[[8]]", "true", "8.5", "{8: 16}"])
    def test_no_windows(self, text: str, needed: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=r"--window-size is .* expected tokens such as 8"):
            parse(needed, recipe=f"window_size: {text}\n")

    @pytest.mark.parametrize(
        ("recipe", "sentence"),
        [
            ("window_size: wide", "--window-size is 'wide'; expected tokens such as 8"),
            ("eval_strategy: never", "--eval-strategy is 'never'; expected one of no, steps, epoch"),
            ("learning_rate: {a: 1}", "not supported between"),
        ],
    )
    def test_values_that_are_none(self, needed: dict[str, Any], recipe: str, sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            parse(needed, recipe=recipe)


class TestFlags:
    def test_every_argument_of_transformers(self, needed: dict[str, Any]) -> None:
        """Each with its own default, where it has one that can be written."""
        told, expected = [], {}
        for item in dataclasses.fields(TrainingArguments):
            value = item.default.value if isinstance(item.default, enum.Enum) else item.default
            written = isinstance(value, (bool, int, float)) or (isinstance(value, str) and value)
            if item.init and item.name not in needed and written:
                told.append(f"--{item.name}={value}")
                expected[item.name] = value
        # transformers switches it off itself without an accelerator; the examples have no columns that nobody uses.
        expected |= {"dataloader_pin_memory": False, "remove_unused_columns": False}
        settings = parse(needed, *told)
        assert len(expected) > 60
        assert {name: getattr(settings, name) for name in expected} == expected

    def test_what_transformers_refuses(self, needed: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="warmup_steps"):
            parse(needed, "--warmup-steps", "-1")


class TestRates:
    def test_the_base_rate_is_for_512_images(self, needed: dict[str, Any]) -> None:
        settings = parse(needed, "--base-rate", "1e-3", "--gradient-accumulation-steps", "16")
        assert settings.whole_batch == 128
        assert settings.learning_rate == pytest.approx(2.5e-4)

    def test_the_authors_batch_of_2048(self, needed: dict[str, Any]) -> None:
        # SimMIM's fine-tuning: 1.25e-3 for 512 images is 5e-3 for 2048.
        settings = parse(needed | {"per_device_train_batch_size": 2048}, "--base-rate", "1.25e-3")
        assert settings.learning_rate == pytest.approx(5e-3)

    def test_otherwise_the_learning_rate_is_what_it_is(self, needed: dict[str, Any]) -> None:
        assert parse(needed).learning_rate == 1e-3
        assert parse(needed, "--learning-rate", "3e-4").learning_rate == 3e-4


COMMON = [
    ({"data": ""}, "--data is missing; expected the source of the images"),
    ({"model": ""}, "--model is missing; expected the model to start from"),
    ({"output_dir": ""}, "--output-dir is missing"),
    ({"streaming": True}, "--streaming needs --max-steps"),
    ({"streaming": True, "max_steps": 5, "train_fraction": 0.5}, "leave out --streaming"),
    ({"image_size": [1, 2, 3]}, "expected one length, or height and width"),
    ({"milestones": [0.5], "lr_scheduler_type": "cosine"}, "--lr-scheduler-type has no effect with --milestones"),
    ({"milestones": [700.0]}, "expected shares of the training"),
    ({"milestones": [0.5], "lr_scheduler_kwargs": {"power": 2}}, "--lr-scheduler-kwargs .*'power'"),
    ({"milestones": [0.5], "lr_scheduler_kwargs": {"warmup_lr_rate": "some"}}, "--lr-scheduler-kwargs .*'some'"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"power": 2}}, "--lr-scheduler-kwargs .*'power'"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "--lr-scheduler-kwargs {}: One of min_lr"),
    ({"lr_scheduler_type": "cosin"}, "--lr-scheduler-type is 'cosin'; expected one of linear, cosine, "),
    ({"log_level": "loud"}, "--log-level is 'loud'; expected one of "),
    ({"dataloader_multiprocessing_context": "x"}, "--dataloader-multiprocessing-context is 'x'; expected one of fork"),
    ({"ema_decay": 1.0}, "--ema-decay is 1.0"),
    ({"ema_decay": -0.1}, "--ema-decay is -0.1"),
    ({"learning_rate": 0.0}, "the learning rate is 0.0; expected above 0"),
    ({"base_rate": -1e-3}, "expected above 0"),
    ({"base_rate": 1e-3, "learning_rate": 1e-4}, "--learning-rate has no effect with --base-rate"),
    ({"data_seed": 5}, "--data-seed has no effect: --seed"),
    ({"save_only_model": True}, "--save-only-model would omit files that --resume needs"),
    ({"crop_scale": [0.5]}, "--crop-scale is"),
    ({"crop_scale": [0.9, 0.5]}, "--crop-scale is"),
    ({"crop_scale": [0.0, 0.5]}, "--crop-scale is"),
    ({"crop_scale": [0.5, 1.5]}, "--crop-scale is"),
]


class TestRefusals:
    @pytest.mark.parametrize("kind", [PretrainSettings, FinetuneSettings])
    @pytest.mark.parametrize(("given", "sentence"), COMMON)
    def test_common(
        self, kind: type[RunSettings], given: dict[str, Any], sentence: str, needed: dict[str, Any]
    ) -> None:
        with pytest.raises(UsageError, match=sentence):
            kind(**(needed | given))

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"mixup": -0.1}, "--mixup is -0.1"),
            ({"cutmix": -0.1}, "--cutmix is -0.1"),
            ({"mixup": 0.8}, "mix pairs"),
            ({"cutmix": 1.0, "dataloader_drop_last": True, "per_device_train_batch_size": 7}, "mix pairs"),
            ({"lora": True, "frozen_stages": 1}, "leave out --frozen-stages"),
            ({"lora": True, "matrix_learning_rate": 1e-3}, "that --lora freezes"),
            ({"lora_rank": 4}, "--lora-rank has no effect without --lora"),
            ({"lora": True, "lora_rank": 0}, "--lora-rank is 0"),
            ({"matrix_learning_rate": 1e-3, "adam_beta2": 0.95}, "--adam-beta2 has no effect with --matrix"),
            ({"matrix_learning_rate": 1e-3, "base_rate": 1e-3}, "--base-rate has no effect with --matrix"),
            ({"matrix_learning_rate": 1e-3, "optim": "sgd"}, "--optim has no effect with --matrix"),
            ({"matrix_learning_rate": 1e-3, "layer_decay": 0.9}, "--layer-decay has no effect"),
            ({"crop_padding": 4, "crop_scale": [0.5, 1.0]}, "--crop-scale has no effect with --crop-padding"),
        ],
    )
    def test_finetuning(self, given: dict[str, Any], sentence: str, needed: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=sentence):
            FinetuneSettings(**(needed | given))

    def test_what_is_near_a_refusal_and_none(self, needed: dict[str, Any]) -> None:
        mixing = {"mixup": 0.8, "cutmix": 1.0, "dataloader_drop_last": True}
        schedule = {"lr_scheduler_type": "cosine_warmup_with_min_lr", "warmup_steps": 0.1}
        schedule["lr_scheduler_kwargs"] = {"min_lr": 1e-5, "warmup_lr_rate": 1e-3}
        assert FinetuneSettings(**needed, **mixing, **schedule).label_names == ["labels"]
        drops = {"milestones": [0.875], "lr_scheduler_kwargs": {"gamma": 0.5}, "streaming": True}
        assert PretrainSettings(**needed, **drops, max_steps=5).label_names == ["bool_masked_pos"]
