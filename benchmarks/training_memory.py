"""Prints a table of the memory of training under FSDP2: GiB on each process, by the number of processes.

    python benchmarks/training_memory.py --size giant-3b --image-size 192 --window-size 12
    python benchmarks/training_memory.py --size base --image-size 192 --window-size 12 --measure 2

The memory is estimated, without building weights. With --measure N, N gloo processes also train for a few steps on this
machine's CPU, and their largest resident memory is printed next to the estimate.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from swinv2 import Swinv2Config, Swinv2ForMaskedImageModeling
from swinv2.train.memory import training_memory
from swinv2.zoo import find_preset

WORLDS = (1, 2, 4, 8, 16, 32, 64, 128)
STEPS = 3

PROGRAM = """
import resource, sys
import torch
from swinv2.train.pretrain import make_pretraining
from swinv2.train.settings import PretrainSettings, parse_settings
def largest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
imported = largest()
trainer = make_pretraining(parse_settings(PretrainSettings, sys.argv[1:], "memory"))
trainer.train()
torch.distributed.barrier()
print(f"PEAK {largest():.0f} {imported:.0f}", flush=True)
"""


def main(
    size: Annotated[str, typer.Option(help="Preset of the model.")] = "giant-3b",
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 192,
    window_size: Annotated[int, typer.Option(help="Window in tokens.")] = 12,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a forward pass on each process.")] = 8,
    measure: Annotated[int, typer.Option(min=0, help="Number of processes to measure; 0: no measurement.")] = 0,
) -> None:
    """Estimates, measures and prints."""
    fields = find_preset(size).config_fields() | {"image_size": image_size, "window_size": window_size}
    config = Swinv2Config(**fields)
    with torch.device("meta"):
        model = Swinv2ForMaskedImageModeling(config)
    print("| processes | state | gathered | activations | all | activations, checkpointed | all |")
    print("|" + " --- |" * 7)
    for world in WORLDS:
        found, less = (training_memory(model, batch_size, checkpointed=c, shards=world) for c in (False, True))
        state = found["weights"] + found["gradients"] + found["optimizer"]
        numbers = (state, found["gathered"], found["activations"], sum(found.values()))
        numbers = (*numbers, less["activations"], sum(less.values()))
        print(f"| {world} | " + " | ".join(f"{number / 1024:.1f}" for number in numbers) + " |")
    if measure:
        expected = training_memory(model, batch_size, in_half=False, shards=measure)
        peaks = _measure(size, image_size, window_size, batch_size, measure)
        worked_out = round(sum(expected.values()))
        print(json.dumps({"processes": measure, "worked_out_mib": worked_out, **peaks}))


def _measure(size: str, image_size: int, window_size: int, batch_size: int, processes: int) -> dict[str, list[int]]:
    """Largest resident memory of each process, in MiB, and the part of it that imported libraries take."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for index in range(STEPS * batch_size * processes):
            pixels = np.random.default_rng(index).integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / "program.py").write_text(PROGRAM)
        flags: dict[str, Any] = {
            "data": place,
            "output_dir": folder / "run",
            "model": size,
            "image_size": image_size,
            "window_size": window_size,
            "per_device_train_batch_size": batch_size,
            "max_steps": STEPS,
            "fsdp": "true",
            "fsdp_config": json.dumps({"version": 2}),
            "ddp_backend": "gloo",
            "use_cpu": True,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "grid_images": 0,
            "dataloader_num_workers": 0,
        }
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [sys.executable, *launcher, str(folder / "program.py"), *(f"--{n}={v}" for n, v in flags.items())],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        peaks = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("PEAK")]
        return {"peaks_mib": [int(peak) for peak, _ in peaks], "imported_mib": [int(before) for _, before in peaks]}


if __name__ == "__main__":
    typer.run(main)
