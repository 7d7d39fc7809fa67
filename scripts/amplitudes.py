"""A small version of the paper's figure 2: the size of activations with pre-norm and with post-norm.

Three models learn CIFAR-10 with the same seed and the same images in the same order. The first has pre-norm branches,
like the first Swin Transformer; its norms begin with weight 1, because weight 0 would block all branches. The second is
this package's: post-norm branches, whose norms begin with weight 0, as in the authors' code. The third is the same, but
its norms begin with weight 1. Then the average channel variance of every block is measured on test images.

    python scripts/amplitudes.py --data cifar10 --output runs/amplitudes

OUTPUT/amplitudes.png has the figure, amplitudes.json the numbers. A model with numbers in this file is not trained
again.

Source: Liu et al., Swin Transformer V2 (arXiv 2111.09883), section 3.2 and figure 2.
"""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from cifar10 import read_arrays
from torch import Tensor, nn

from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.inspect.amplitudes import Amplitude, Amplitudes, draw_amplitudes
from swinv2.inspect.observation import observe
from swinv2.layers.block import PostNorm, SwinTransformerBlock

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = 10
MODEL = {"image_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 48, "num_heads": [2, 4]}
WARM_UP = 50
"""Steps of the warm-up."""

PRE, POST, POST_FROM_ONE = (
    "normalised before (as Swin V1)",
    "normalised after, norms from 0 (Swin V2)",
    "normalised after, norms from 1",
)


class PreNormBlock(SwinTransformerBlock):
    """The package's block, with pre-norm instead of post-norm."""

    def attention_branch(self, x: Tensor, backend: str, output_attentions: bool) -> tuple[Tensor, ...]:
        attended, *weights = self.attention(self.layernorm_before(x), backend, output_attentions)
        return x + attended, *weights

    def mlp_branch(self, x: Tensor, backend: str) -> Tensor:
        return x + self.output(self.intermediate(self.layernorm_after(x)))


def build(where: str, depths: list[int], seed: int) -> Swinv2ForImageClassification:
    """A new model; with the same seed, all three kinds have the same weights except in the norms."""
    torch.manual_seed(seed)
    config = Swinv2Config(**MODEL, depths=depths, drop_path_rate=0.0, num_labels=CLASSES)
    model = Swinv2ForImageClassification(config)
    for module in model.modules():
        if isinstance(module, SwinTransformerBlock) and where == PRE:
            module.__class__ = PreNormBlock
        elif isinstance(module, PostNorm) and where != POST:
            nn.init.ones_(module.weight)
    return model


def pixels(images: np.ndarray) -> Tensor:
    """Normalised images (N, 3, 32, 32)."""
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def train(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, steps: int, rate: float, batch_size: int, seed: int
) -> list[float]:
    """Trains with AdamW, a warm-up and half a cosine; returns the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    draw = np.random.default_rng(seed)
    losses: list[float] = []
    model.train()
    started = time.monotonic()
    for step in range(steps):
        share = min((step + 1) / WARM_UP, 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        chosen = draw.integers(0, len(labels), batch_size)
        batch = images[chosen]
        batch = np.where(draw.random(batch_size)[:, None, None, None] < 0.5, batch, batch[:, :, ::-1])
        loss = model(pixels(batch), labels=torch.from_numpy(labels[chosen]).long()).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            print(f"  step {step + 1}, loss {np.mean(losses[-50:]):.3f}, {seconds:.0f} s", flush=True)
    return losses


@torch.no_grad()
def measure(
    model: Swinv2ForImageClassification, images: np.ndarray, labels: np.ndarray, count: int
) -> tuple[list[Amplitude], float]:
    """Amplitudes over the first test images, and their top-1 accuracy."""
    model.eval()
    # `observe` needs this backend.
    model.set_attn_implementation("eager")
    amplitudes, right = Amplitudes(), 0
    is_pre = any(isinstance(module, PreNormBlock) for module in model.modules())
    ends = ("attention", "output") if is_pre else ("layernorm_before", "layernorm_after")
    for start in range(0, count, 100):
        batch = pixels(images[start : start + 100])
        amplitudes.add(observe(model.swinv2, batch, ends))
        right += int((model(batch).logits.argmax(-1).numpy() == labels[start : start + 100]).sum())
    return amplitudes.measured(), right / count


def main(
    data: Annotated[str, typer.Option(help="CIFAR-10: a folder, or a data set's name.")] = "cifar10",
    output: Annotated[Path, typer.Option(help="Folder for the figure and the numbers.")] = Path("runs/amplitudes"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of each training.")] = 400,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 128,
    depths: Annotated[str, typer.Option(help="Blocks of the two stages.")] = "2,10",
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights and images.")] = 0,
    images: Annotated[int, typer.Option(min=100, help="Number of test images, a multiple of 100.")] = 1000,
) -> None:
    """Trains the models, measures them, and draws their amplitudes."""
    asked = {"steps": steps, "batch_size": batch_size, "depths": depths, "rate": rate, "seed": seed}
    asked |= {"images": images}
    file = output / "amplitudes.json"
    numbers = json.loads(file.read_text()) if file.is_file() else {"asked": asked}
    if numbers["asked"] != asked:
        raise SystemExit(f"{file} has other settings, {numbers['asked']}; choose another --output, or delete it.")
    output.mkdir(parents=True, exist_ok=True)
    kinds = (PRE, POST, POST_FROM_ONE)
    for where in kinds:
        if where in numbers:
            continue
        print(f"branches {where}", flush=True)
        model = build(where, [int(depth) for depth in depths.split(",")], seed)
        losses = train(model, *read_arrays(data, "train")[:2], steps, rate, batch_size, seed)
        measured, top1 = measure(model, *read_arrays(data, "test")[:2], images)
        mains = [amplitude.main for amplitude in measured]
        print(f"  top-1 {top1:.1%}; highest over lowest amplitude {max(mains) / min(mains):.1f}", flush=True)
        loss = float(np.mean(losses[-50:]))
        numbers[where] = {"top1": top1, "loss": loss, "amplitudes": [asdict(amplitude) for amplitude in measured]}
        file.write_text(json.dumps(numbers, indent=2) + "\n")
    found = {
        where: [Amplitude(**each) for each in numbers[where]["amplitudes"]] for where in numbers if where != "asked"
    }
    title = f"Norms before or after a branch's work: {steps} steps on CIFAR-10"
    draw_amplitudes(found, output / "amplitudes.png", title, has_branches=False)


if __name__ == "__main__":
    typer.run(main)
