"""`swinv2 pretrain` and `swinv2 finetune`, from flags to exit status.

In: flags. Out: what was trained, and an exit status: 0, 3 if the training stopped because it could not go on, 128 and
the number of the signal that stopped it. Messages go to stderr, `--as_json` to stdout. What trains is imported when
the settings have been read: refusals and `--help` need less.
"""

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from swinv2.errors import UsageError
from swinv2.train.settings import FinetuneSettings, PretrainSettings, parse_settings

if TYPE_CHECKING:
    from swinv2.train.trainer import SwinTrainer

STOPPED = 3
"""Exit status of a training that could not go on."""


def pretrain(flags: Sequence[str]) -> int:
    """Runs `swinv2 pretrain`.

    Raises:
        UsageError: A flag, the data or the model does not fit; nothing was trained.
    """
    settings = parse_settings(PretrainSettings, flags, "swinv2 pretrain")
    _log_to_stderr()
    from swinv2.train.pretrain import make_pretraining

    return _run(make_pretraining(settings))


def finetune(flags: Sequence[str]) -> int:
    """Runs `swinv2 finetune`.

    Raises:
        UsageError: A flag, the data or the model does not fit; nothing was trained.
    """
    settings = parse_settings(FinetuneSettings, flags, "swinv2 finetune")
    _log_to_stderr()
    from swinv2.train.finetune import make_finetuning

    return _run(make_finetuning(settings))


def _run(trainer: "SwinTrainer") -> int:
    import torch

    from swinv2.train.checkpoints import SaveError, newest_sound
    from swinv2.train.health import DivergedError, TooManyBrokenError
    from swinv2.train.plan import make_plan
    from swinv2.train.running import run_training

    args = trainer.args
    plan = make_plan(trainer)
    if args.dry_run:
        print(json.dumps(plan, indent=2)) if args.as_json else print_plan(plan, Console(highlight=False))
        return 0
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    if args.should_save:
        messages.print(
            f"{plan['steps']} steps of {plan['images_a_step']} images; learning rate {args.learning_rate:g}, which is "
            f"{plan['learning_rate_for_512_images']:g} for 512 images; {args.output_dir}",
            style="dim",
        )
    try:
        results, status = run_training(trainer)
    except (DivergedError, SaveError, TooManyBrokenError) as error:
        messages.print(Text.assemble(("stopped: ", "bold red"), str(error)))
        return STOPPED
    except UsageError as error:
        if not trainer.has_begun:
            raise
        messages.print(Text.assemble(("stopped: ", "bold red"), _sentence(error)))
        return STOPPED
    except torch.OutOfMemoryError:
        told = (
            "the device has too little memory; give a smaller --per_device_train_batch_size with more "
            "--gradient_accumulation_steps, or --activation_checkpointing."
        )
        messages.print(Text.assemble(("stopped: ", "bold red"), told))
        return STOPPED
    except OSError as error:
        kept = newest_sound(trainer.run)[0] or "there is none yet"
        told = f"a file of the run could not be written or read: {error}. The newest checkpoint: {kept}."
        messages.print(Text.assemble(("stopped: ", "bold red"), told))
        return STOPPED
    if args.should_save:
        if args.as_json:
            print(json.dumps(results))
        elif status:
            messages.print(
                f"{results['stopped_by']}: saved at step {results['step']}; --resume goes on", style="yellow"
            )
        else:
            shown = {name: value for name, value in results.items() if isinstance(value, float)}
            messages.print(", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    return status


def _sentence(error: UsageError) -> str:
    """What an error says. One from a process that reads pictures brings the process' whole traceback along."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text


def _log_to_stderr() -> None:
    """Lets this package's own messages through."""
    logger = logging.getLogger("swinv2")
    if not logger.handlers:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        logger.addHandler(RichHandler(console=console, show_time=False, show_path=False, markup=False))
        logger.propagate = False


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Prints what `--dry_run` found, as tables."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    data, model = plan["data"], plan["model"]
    pictures = "streams" if data["pictures"] is None else f"{data['pictures']:,} pictures"
    facts.add_row("data", f"{data['place']}: {pictures}, {data['classes'] or 'no'} classes")
    facts.add_row("evaluated", f"{data['evaluated']:,} pictures" if data["evaluated"] else "nothing")
    facts.add_row("model", f"{model['parameters']:,} parameters, {model['learning']:,} of them learn")
    facts.add_row("image size, windows", f"{model['image_size']}, {model['windows']}")
    facts.add_row("bias learned in windows", f"{model['pretrained_windows']} (0: the same)")
    facts.add_row(
        "steps", f"{plan['steps']:,} of {plan['images_a_step']} images, {plan['warmup_steps']} of them warm-up"
    )
    facts.add_row(
        "learning rate", f"{plan['learning_rate']:g}, which is {plan['learning_rate_for_512_images']:g} for 512 images"
    )
    memory = plan["memory_mib"]
    facts.add_row(
        "memory, about",
        " + ".join(f"{name} {value:,.0f}" for name, value in memory.items()) + f" = {sum(memory.values()):,.0f} MiB",
    )
    console.print(facts)
    groups = Table("layer", "learning rate", "weight decay", "tensors", "parameters", box=None, pad_edge=False)
    for group in plan["groups"]:
        groups.add_row(
            str(group["layer"]),
            f"{group['learning_rate']:.4g}",
            f"{group['weight_decay']:g}",
            str(group["tensors"]),
            f"{group['parameters']:,}",
        )
    console.print(groups)
    settings = Table(show_header=False, box=None, pad_edge=False)
    for name, value in plan["settings"].items():
        settings.add_row(name, str(value))
    console.print(settings)
