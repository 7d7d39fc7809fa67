"""Flags and recipes: what is understood, what is refused, and that both are what the data classes declare."""

import argparse
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from swinv2.errors import UsageError
from swinv2.train import flags
from swinv2.train.flags import as_flag, own_settings, read_flags, settings_of_transformers
from swinv2.train.options import FinetuneOptions, PretrainOptions, RunOptions
from swinv2.train.settings import FinetuneSettings, PretrainSettings, RunSettings, make_settings

NEEDED = ["--data", "pictures", "--model", "tiny", "--output-dir", "run"]


def read(*told: str, options: type[RunOptions] = FinetuneOptions) -> dict[str, Any]:
    """What flags say beside `NEEDED`."""
    return read_flags(options, [*NEEDED, *told], "swinv2 finetune")


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], str]:
    """Writes a recipe."""

    def write(text: str) -> str:
        (tmp_path / "recipe.yaml").write_text(text)
        return str(tmp_path / "recipe.yaml")

    return write


class TestWhatIsDeclared:
    """The source of transformers is read, not run: it must be read rightly, in every version."""

    def test_the_settings_of_transformers(self) -> None:
        found, expected = settings_of_transformers(), own_settings(TrainingArguments)
        # Named, in the source, where it is worked out.
        defaults = {setting.name: setting.default for setting in expected} | {"optim": "default_optim"}
        assert [(setting.name, setting.default, setting.help) for setting in found] == [
            (setting.name, defaults[setting.name], setting.help) for setting in expected
        ]

    @pytest.mark.parametrize(
        ("options", "kind"), [(PretrainOptions, PretrainSettings), (FinetuneOptions, FinetuneSettings)]
    )
    def test_flags_are_those_of_the_parser_of_transformers(
        self, options: type[RunOptions], kind: type[RunSettings]
    ) -> None:
        """The same names; and the same values of every text, or a refusal."""
        ours = flags._FlagParser(options)._option_string_actions
        data_class: Any = kind
        theirs = HfArgumentParser(data_class)._option_string_actions
        # An older version has them by older names only.
        newer = {as_flag(name) for name in flags.OLDER_NAMES}
        assert newer <= set(ours)
        assert set(ours) - newer - {"--config"} == {name for name in theirs if "_" not in name} - newer
        # Only in recipes: the parser of transformers makes nothing of any text.
        mappings = {"--liger-kernel-config", "--parallelism-config"}
        # One word, which TrainingArguments parts by itself.
        words = {"--debug"}
        for name in set(ours) & set(theirs) - {"-h", "--help"} - mappings:
            one, other = ours[name], theirs[name]
            assert one.dest == other.dest
            assert (one.nargs == "+") == (other.nargs == "+") or name in words
            for text in ("true", "no", "1", "-3", "0.5", "1e-3", "word", "{}", ""):
                values = [value_of(action, text) for action in (one, other)]
                assert values[0] == values[1] or name in words, (name, text)

    @pytest.mark.parametrize("options", [PretrainOptions, FinetuneOptions])
    def test_help(self, options: type[RunOptions], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            read_flags(options, ["--help"], "swinv2 finetune", "Trains.")
        assert end.value.code == 0
        printed = capsys.readouterr().out
        assert printed.startswith("usage: swinv2 finetune")
        assert "Trains." in printed
        own, _, theirs = printed.partition("settings of transformers' TrainingArguments:")
        names = {as_flag(item.name) for item in dataclasses.fields(options)}
        assert names <= set(re.findall(r"--[\w-]+", own))
        rest = {as_flag(item.name) for item in dataclasses.fields(TrainingArguments) if item.init} - names
        assert rest <= set(re.findall(r"--[\w-]+", theirs))
        assert "--config" in own
        assert "(default: 10000)" in own
        assert not re.search(r"^ *--\w+_", printed, re.MULTILINE)


def value_of(action: argparse.Action, text: str) -> Any:
    """What an argument makes of text; transformers' enumerations are its own to read."""
    try:
        return action.type(text) if callable(action.type) else action.const
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return "refused"


class TestFlags:
    def test_what_was_told_and_nothing_else(self) -> None:
        expected = {"data": "pictures", "model": "tiny", "output_dir": "run"}
        assert read() == expected
        told = ["--weight-decay=0.2", "--image-size", "64", "32", "--max-steps", "-1", "--bf16", "--tf32", "false"]
        expected |= {"weight_decay": 0.2, "image_size": [64, 32], "max_steps": -1, "bf16": True, "tf32": False}
        assert read(*told, "--no-dataloader-pin-memory") == expected | {"dataloader_pin_memory": False}

    def test_what_transformers_parser_is_told_besides(self) -> None:
        """Whether a flag may stand alone."""
        assert read("--fsdp", "--bf16")["fsdp"] is True
        assert read("--fsdp", "full_shard")["fsdp"] == "full_shard"

    def test_a_value_that_is_no_json_is_named(self) -> None:
        with pytest.raises(UsageError, match=r"--lr-scheduler-kwargs is '\{bad', which is not JSON"):
            make_settings(FinetuneSettings, read("--lr-scheduler-kwargs", "{bad"))

    def test_underscores_are_as_good_as_dashes(self) -> None:
        told = ["--weight_decay", "0.2", "--output-dir=a_b", "--no_dataloader_pin_memory", "--train-split", "a_b"]
        values = read(*told)
        assert (values["weight_decay"], values["output_dir"], values["train_split"]) == (0.2, "a_b", "a_b")
        assert values["dataloader_pin_memory"] is False

    @pytest.mark.parametrize(
        ("told", "sentence"),
        [
            (["--wieght-decay", "0.1"], "no setting '--wieght-decay'; did you mean --weight-decay?"),
            (["--wieght-decay=0.1"], "no setting '--wieght-decay'; did you mean --weight-decay?"),
            (["--qqqq"], r"no setting '--qqqq'\. `--help`"),
            (["--given", "1"], r"no setting '--given'(?!; did you mean --given)"),
            (["--num-frames", "4"], r"no setting '--num-frames' here; it is one of --task video\."),
            (["stray"], "no setting 'stray'"),
            (["--weight-decay", "much"], "argument --weight-decay.*'much'"),
            (["--weight-decay"], "argument --weight-decay.*expected one argument"),
            (["--bf16", "perhaps"], "argument --bf16: expected true or false, not 'perhaps'"),
            (["--image-size"], "argument --image-size: expected at least one argument"),
            (["--config"], "argument --config: expected one argument"),
            (["--data", ""], "--data is missing; expected the source of the images"),
        ],
    )
    def test_flags_that_are_none(self, told: list[str], sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            read(*told)

    @pytest.mark.parametrize("name", ["data", "model", "output-dir"])
    def test_what_every_training_needs(self, name: str) -> None:
        source = NEEDED.index(f"--{name}")
        with pytest.raises(UsageError, match=f"--{name} is missing; expected"):
            read_flags(PretrainOptions, NEEDED[:source] + NEEDED[source + 2 :], "swinv2 pretrain")

    def test_older_versions_of_transformers_call_some_settings_otherwise(
        self, monkeypatch: pytest.MonkeyPatch, recipe: Callable[[str], str]
    ) -> None:
        old = [setting for setting in settings_of_transformers() if not setting.name.startswith("activation_")]
        monkeypatch.setattr(flags, "settings_of_transformers", lambda: old)
        assert read("--activation-checkpointing")["gradient_checkpointing"] is True
        config = recipe("activation_checkpointing: false\nactivation_checkpointing_kwargs: {a: 1}\n")
        told = read("--config", config)
        assert (told["gradient_checkpointing"], told["gradient_checkpointing_kwargs"]) == (False, {"a": 1})


class TestRecipes:
    def test_flags_on_top(self, recipe: Callable[[str], str]) -> None:
        config = recipe("weight_decay: 0.1\noutput-dir: elsewhere\nmax_grad_norm: 3\nreport_to: [a, b]\ndata:\n")
        told = read("--config", config, "--weight-decay", "0.2")
        assert told == {
            "data": "pictures",
            "model": "tiny",
            "output_dir": "run",
            "weight_decay": 0.2,
            "max_grad_norm": 3.0,
            "report_to": ["a", "b"],
        }

    def test_what_it_says_is_not_missing(self, recipe: Callable[[str], str]) -> None:
        told = read_flags(
            PretrainOptions, ["--config", recipe("data: a\nmodel: b\noutput_dir: c\n")], "swinv2 pretrain"
        )
        assert told == {"data": "a", "model": "b", "output_dir": "c"}

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("wieght_decay: 0.1", r"has an unknown setting 'wieght_decay'; did you mean weight_decay\?"),
            ("qqqq: 0.1", r"has an unknown setting 'qqqq'\."),
            ("given: {}", "has an unknown setting 'given'"),
            ("3: 4", "has an unknown setting 3"),
            ("learning_rate: fast", r"recipe.yaml: argument --learning-rate.*'fast'"),
            ("learning_rate: [1, 2]", r"recipe.yaml: .*"),
            ("max_steps: 2.5", r"recipe.yaml: argument --max-steps.*'2.5'"),
            ("- 1", "has no settings"),
            ("just words", "has no settings"),
            ("a: [", "cannot be read"),
        ],
    )
    def test_recipes_that_are_none(self, text: str, sentence: str, recipe: Callable[[str], str]) -> None:
        with pytest.raises(UsageError, match=sentence):
            read("--config", recipe(text))

    def test_a_recipe_that_is_not_there(self) -> None:
        with pytest.raises(UsageError, match=r"recipe nowhere\.yaml cannot be read"):
            read("--config", "nowhere.yaml")
