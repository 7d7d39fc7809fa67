"""Reads the flags and the recipe of `swinv2 pretrain` and `swinv2 finetune`.

In: command-line flags. Out: the given values, by the names of the settings, or the help text. A flag overrides the
recipe.

Most settings are transformers' `TrainingArguments`. Importing that class imports torch and takes seconds. Therefore its
names, types, defaults and help texts are read from the source file without running it; help and errors come at once.
"""

import argparse
import ast
import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from inspect import formatannotation
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from swinv2.errors import UsageError
from swinv2.train.options import DenseOptions, PretrainOptions, RunOptions, VideoOptions, refuse_missing

OLDER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
"""Settings of transformers, and their names in older versions."""


def _read_bool(text: str) -> bool:
    """Reads the value of a flag that is true or false."""
    for value, words in {True: ("true", "t", "yes", "y", "1"), False: ("false", "f", "no", "n", "0")}.items():
        if text.lower() in words:
            return value
    raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")


_READERS: dict[str, Callable[[str], Any]] = {"bool": _read_bool, "str": str, "int": int, "float": float}
"""Functions that read a value from text; the first one that a setting's type allows is used. Enumerations of
transformers are read as text."""


class Setting(NamedTuple):
    """A setting as its class declares it; type and default are Python source text."""

    name: str
    type: str
    default: str
    help: str
    rest: dict[str, Any] = {}

    def argument(self) -> dict[str, Any]:
        """The arguments of `add_argument` for this setting."""
        inside = re.fullmatch(r"list\[(\w+)\]( \| None)?", self.type)
        kinds = (inside[1] if inside else self.type).split(" | ")
        kind, read = next(((kind, _READERS[kind]) for kind in _READERS if kind in kinds), ("json", json.loads))
        shape = {"nargs": "+"} if inside else {"nargs": "?", "const": True} if kind == "bool" else {}
        default = "" if self.default in ("None", "[]", "''") else f" (default: {self.default})"
        return (
            {"dest": self.name, "type": read, "metavar": kind.upper(), "help": self.help + default} | shape | self.rest
        )


def own_settings(options: type[Any]) -> list[Setting]:
    """The settings of a data class that can be given as flags."""
    found: list[Setting] = []
    for item in dataclasses.fields(options):
        if item.init:
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            found.append(Setting(item.name, formatannotation(item.type), repr(default), item.metadata.get("help", "")))
    return found


def settings_of_transformers() -> list[Setting]:
    """The flags of `TrainingArguments` in the installed version of transformers."""
    package: Any = find_spec("transformers")
    source = Path(package.submodule_search_locations[0], "training_args.py").read_text("utf-8")
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    found: list[Setting] = []
    for node in next(node.body for node in classes if node.name == "TrainingArguments"):
        # name: type = field(default=..., metadata={"help": ...})
        if not (isinstance(node, ast.AnnAssign) and node.value):
            continue
        words = node.value.keywords if isinstance(node.value, ast.Call) else [ast.keyword("default", node.value)]
        told = {word.arg: word.value for word in words}
        if "init" not in told:
            metadata = told.get("metadata")
            entries = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
            # What its parser takes: help, and sometimes nargs and const.
            rest = {
                ast.literal_eval(key): text.value for key, text in entries if key and isinstance(text, ast.Constant)
            }
            default = ast.unparse(told["default"]) if "default" in told else "[]"
            help = str(rest.pop("help", ""))
            found.append(Setting(ast.unparse(node.target), ast.unparse(node.annotation), default, help, rest))
    return found


class _FlagParser(argparse.ArgumentParser):
    """Reads all settings of a command: `options`, which are this package's, and transformers'."""

    def __init__(self, options: type[RunOptions], **rest: Any) -> None:
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **rest)
        self.settings: dict[str, Setting] = {}
        self.add_argument("--config", type=Path, metavar="FILE", help="A recipe: a YAML file of the settings below.")
        own = {setting.name: setting for setting in own_settings(options)}
        theirs = {setting.name: setting for setting in settings_of_transformers() if setting.name not in own}
        for title, settings in {"settings": own, "settings of transformers' TrainingArguments": theirs}.items():
            group = self.add_argument_group(title)
            for name, setting in settings.items():
                newer = [new for new, old in OLDER_NAMES.items() if old == name and new not in theirs]
                flags = [as_flag(one) for one in (name, *newer)]
                group.add_argument(*flags, **setting.argument())
                if setting.default == "True":
                    flags.append(as_flag(f"no_{name}"))
                    group.add_argument(flags[-1], dest=name, action="store_false", help=argparse.SUPPRESS)
                self.settings |= dict.fromkeys(flags, setting)

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError` instead of printing three hundred lines of usage."""
        raise UsageError(f"{message}. `--help` lists all flags.")

    def read(self, flags: Sequence[str]) -> dict[str, Any]:
        """The values of flags, by the names of settings. Flags may have underscores instead of dashes."""
        told, unknown = self.parse_known_args(
            [re.sub("^--[^=]+", lambda name: as_flag(name[0]), flag) for flag in flags]
        )
        if unknown:
            flag = unknown[0].split("=")[0]
            raise UsageError(f"there is no setting {flag!r}{self.suggest(flag)} `--help` lists all flags.")
        return vars(told)

    def suggest(self, flag: str) -> str:
        """The end of a sentence about an unknown flag: the task that has it, or a similar flag if there is one, and a
        full stop."""
        others = {"video": VideoOptions, "segmentation, instances or detection": DenseOptions}
        for tasks, options in others.items():
            if flag in (as_flag(setting.name) for setting in own_settings(options)):
                return f" here; it is one of --task {tasks}."
        close = difflib.get_close_matches(flag, self.settings, 1)
        return f"; did you mean {close[0]}?" if close else "."

    def read_recipe(self, path: Path) -> dict[str, Any]:
        """The values of a recipe, by the names of settings."""
        try:
            recipe: Any = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"the recipe {path} cannot be read: {error}") from error
        if not isinstance(recipe, dict):
            raise UsageError(f"the recipe {path} has no settings; expected lines such as 'learning_rate: 1e-3'.")
        bare: dict[str, Any] = {}
        flags: list[str] = []
        for name, value in recipe.items():
            flag = as_flag(str(name))
            setting = self.settings.get(flag)
            if setting is None:
                hint = self.suggest(flag).replace("--", "").replace("-", "_")
                raise UsageError(f"the recipe {path} has an unknown setting {name!r}{hint}")
            # Values are read like flags, because YAML takes 1e-3, without a point, for text. Values that no flag can
            # have (null, mappings, lists of text) are used as they are.
            if isinstance(value, list) and value and "str" not in setting.type:
                flags += [flag, *map(str, value)]
            elif value is None or isinstance(value, (dict, list)):
                bare[setting.name] = value
            else:
                flags.append(f"{flag}={value}")
        try:
            return bare | self.read(flags)
        except UsageError as error:
            raise UsageError(f"the recipe {path}: {error}") from error


def given_task(flags: Sequence[str]) -> str | None:
    """The setting `task` of flags, or of the recipe that they name, which decides what other settings there are; None
    if it is not given."""
    given = _values_of("task", flags)
    if given:
        return given[-1]
    for path in _values_of("config", flags):
        try:
            recipe: Any = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            # `read_recipe` says what is wrong with it.
            continue
        if isinstance(recipe, dict) and "task" in recipe:
            return str(recipe["task"])
    return None


def _values_of(name: str, flags: Sequence[str]) -> list[str]:
    """The values of a flag: "--name value" or "--name=value"; "" without a value."""
    found: list[str] = []
    for place, flag in enumerate(flags):
        if flag == f"--{name}":
            found.append("".join(flags[place + 1 : place + 2]))
        elif flag.startswith(f"--{name}="):
            found.append(flag.partition("=")[2])
    return found


def as_flag(name: str) -> str:
    """The flag of a setting: "--weight-decay" for "weight_decay" and for "--weight-decay"."""
    return f"--{name.removeprefix('--').replace('_', '-')}"


def read_flags(
    options: type[RunOptions],
    flags: Sequence[str],
    command: str,
    description: str | None = None,
    *,
    without_recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Reads flags and the recipe of `--config`; a flag overrides the recipe.

    Args:
        options: The command's settings of this package.
        flags: The command-line arguments.
        command, description: Name and description of the command, for the help text.
        without_recipe: Values of settings that are not given, if no recipe is given.

    Returns:
        The given values, by the names of the settings. Only fine-tuning may lack the model.

    Raises:
        UsageError: A setting is unknown or missing, a value is invalid, or the recipe cannot be read.
        SystemExit: `--help` was given; the help text is printed.
    """
    usage = "%(prog)s [--config FILE] [--SETTING VALUE ...]"
    parser = _FlagParser(options, prog=command, usage=usage, description=description)
    told = parser.read(flags)
    recipe = told.pop("config", None)
    beneath = (without_recipe or {}) if recipe is None else parser.read_recipe(recipe)
    told = {**beneath, **told}
    refuse_missing(told, () if options is PretrainOptions else ("model",))
    return told
