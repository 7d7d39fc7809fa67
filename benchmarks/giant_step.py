"""What a training step of a cut-down SwinV2-G needs: its widths, heads and windows, and fewer blocks.

    python benchmarks/giant_step.py

Forward and backward of a classifier at 640 pixels with windows of 40 tokens, in bf16, one image, in the plain form with
so many windows at a time (`attention_chunk_size`) and in the form for a CPU; with blocks computed again in the backward
pass or not. Each runs once, in a process of its own: the rise of its resident memory, gradients included, and the time
of its processor. Beside that stands what is worked out: every tensor that torch makes, on the meta device, as long as
it lives. What would take more than --limit is only worked out. The table goes to benchmarks/results.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import report
import torch
import typer
from living import Living
from memory import MIB, highest_rise, run_alone
from torch.utils.checkpoint import checkpoint

from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.zoo import find_size

FORMS = (("eager", None), ("eager", 4), ("eager", 2), ("eager", 1), ("sdpa", None))
WAYS = (*product(FORMS, (False,)), *((form, True) for form in FORMS if form[1] in (None, 1)))
"""Forms with their windows at a time, and whether blocks are checkpointed."""

LABELS = 1000


def build(asked: dict[str, Any]) -> Swinv2ForImageClassification:
    """The network on the device at hand; its weights are drawn as fresh ones are."""
    whole = find_size("giant-3b")
    fields = whole.config_fields() | {
        "image_size": asked["image_size"],
        "window_size": asked["window_size"],
        "depths": asked["depths"],
        "num_heads": whole.num_heads[: len(asked["depths"])],
        # Six would have no effect in stages so short.
        "extra_norm_period": asked["depths"][0],
        "attention_chunk_size": asked["chunk_size"],
        "num_labels": LABELS,
        "drop_path_rate": 0.0,
    }
    config = Swinv2Config(**fields, attn_implementation=asked["form"])
    model = Swinv2ForImageClassification(config).bfloat16().train()
    if asked["checkpointed"]:
        model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=False))
    return model


def make_step(model: Swinv2ForImageClassification, image_size: int) -> Callable[[], None]:
    """One image, forward and backward. Gradients live until the next step."""
    images = torch.zeros(1, 3, image_size, image_size, dtype=torch.bfloat16, device=model.device)
    labels = torch.zeros(1, dtype=torch.long, device=model.device)

    def step() -> None:
        model.zero_grad()
        model(images, labels=labels).loss.backward()

    return step


def work_out(asked: dict[str, Any]) -> int:
    """Bytes at the highest, on the meta device."""
    with torch.device("meta"):
        model = build(asked)
        step = make_step(model, asked["image_size"])
        with Living() as living:
            living.know(tuple(model.parameters()))
            step()
    return living.highest


def measure(asked: dict[str, Any]) -> tuple[int, float]:
    """Bytes at the highest and seconds, in a process of its own."""
    rise, seconds = run_alone(__file__, json.dumps(asked))[-2:]
    return int(rise), float(seconds)


def _measure_here(asked: dict[str, Any]) -> None:
    torch.manual_seed(0)
    step, took = make_step(build(asked), asked["image_size"]), []

    def timed() -> None:
        before = time.process_time()
        step()
        took.append(time.process_time() - before)

    rise = highest_rise(timed, steps=1)
    print(rise, took[0])


def main(
    image_size: Annotated[int, typer.Option(help="Side of the image in pixels.")] = 640,
    window_size: Annotated[int, typer.Option(help="Window in tokens.")] = 40,
    depths: Annotated[str, typer.Option(help="Blocks of each stage.")] = "1,1,1,1",
    limit: Annotated[int, typer.Option(help="MiB above which nothing is run.")] = 5000,
    output: Annotated[Path | None, typer.Option(help="Where to write, without the ending.")] = None,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measures, works out, and writes the table."""
    if one:
        _measure_here(json.loads(one))
        return
    sizes = {"image_size": image_size, "window_size": window_size, "depths": [int(part) for part in depths.split(",")]}
    facts = report.describe_run("cpu")
    rows: list[report.Row] = []
    for (form, chunk_size), checkpointed in WAYS:
        asked = sizes | {"form": form, "chunk_size": chunk_size, "checkpointed": checkpointed}
        # On the meta device "sdpa" would be what other devices run.
        expected = work_out(asked) / MIB if form == "eager" else None
        rise, seconds = (None, None) if expected is not None and expected > limit else measure(asked)
        rows.append(
            {
                "form": form,
                "windows at a time": chunk_size or ("as fit the cache" if form == "sdpa" else "all"),
                "blocks checkpointed": "yes" if checkpointed else "no",
                "worked out, MiB": "-" if expected is None else round(expected),
                "measured, MiB": "-" if rise is None else round(rise / MIB),
                "CPU seconds": "-" if seconds is None else round(seconds),
            }
        )
        print(*rows[-1].values(), sep=",", file=sys.stderr, flush=True)
    stem = output or report.default_stem("giant-step", "cpu")
    report.write_csv(stem.with_name(stem.name + ".csv"), [row | facts for row in rows])
    caption = f"A step at {image_size} pixels, windows of {window_size}, {depths} blocks: memory beside the weights."
    table = report.table(caption, list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    report.write_markdown(stem.with_name(stem.name + ".md"), "A training step of a cut-down SwinV2-G", [table], facts)
    print(table)


if __name__ == "__main__":
    typer.run(main)
