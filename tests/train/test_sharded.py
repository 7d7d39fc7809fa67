"""Training in several processes that share a model: PyTorch's FSDP2 over gloo, on processors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainings import FIXED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEADY = ["--drop_path_rate", "0", "--eval_strategy", "no", "--num_train_epochs", "2", "--save_steps", "5"]
SHARDED = [
    *STEADY,
    "--fsdp",
    "true",
    "--fsdp_config",
    json.dumps({"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}),
]


def run_python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs Python on one thread for each process; it must end well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def train(flags: list[str], run: Path, processes: int, batch_size: int) -> None:
    """Fine-tunes in so many processes."""
    rest = [*flags, *FIXED, "--output_dir", str(run), "--per_device_train_batch_size", str(batch_size)]
    program = ["-c", "from swinv2.cli import app; app()"]
    if processes:
        script = run.with_suffix(".py")
        script.write_text("from swinv2.cli import app\napp()\n")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        program = [*launcher, str(script)]
        rest += ["--ddp_backend", "gloo"]
    assert "returned a view tensor" not in run_python(*program, "finetune", *rest).stderr


def losses(run: Path) -> list[float]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_the_same_losses_and_checkpoints_for_any_number_of_processes(flags: list[str], tmp_path: Path) -> None:
    """Two processes train as one does; what they saved half-way goes on in one process and in three."""
    one, two = tmp_path / "one", tmp_path / "two"
    train([*flags, *STEADY], one, processes=0, batch_size=8)
    train([*flags, *SHARDED], two, processes=2, batch_size=4)
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    shards = list((two / "checkpoint-5" / "pytorch_model_fsdp_0").glob("*.distcp"))
    assert len(shards) == 2

    expected = load_file(one / "final" / "model.safetensors")
    for processes, batch_size in ((1, 8), (3, 4)):
        run = tmp_path / f"on-{processes}"
        shutil.copytree(two / "checkpoint-5", run / "checkpoint-5")
        train([*flags, *SHARDED, "--resume"], run, processes, batch_size)
        if processes == 1:
            assert losses(run) == pytest.approx(losses(one), abs=1e-5)
        else:
            # A step of 12 images is what one process makes of it that goes on from its own checkpoint.
            shutil.copytree(one / "checkpoint-5", tmp_path / "alone" / "checkpoint-5")
            train([*flags, *STEADY, "--resume"], tmp_path / "alone", processes=0, batch_size=12)
            assert len(losses(run)) == 6
            assert losses(run) == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
        final = load_file(run / "final" / "model.safetensors")
        assert {name: value.shape for name, value in final.items()} == {n: v.shape for n, v in expected.items()}
        if processes == 1:
            assert all(torch.allclose(final[name], expected[name], atol=1e-5) for name in expected)


MATERIALISE = """
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.layers.block import SwinTransformerBlock

dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
config = Swinv2Config(image_size=32, patch_size=2, window_size=4, embed_dim=32, depths=[2, 2], num_heads=[1, 2])
with torch.device("meta"):
    model = Swinv2ForImageClassification(config)
for module in model.modules():
    if isinstance(module, SwinTransformerBlock):
        fully_shard(module)
fully_shard(model)
assert all(parameter.is_meta for parameter in model.parameters())
assert not list(model.buffers())

model.to_empty(device="cpu")
for parameter in model.parameters():
    parameter.data.fill_(7.0)
model.initialize_weights()
shards = [parameter.to_local() for parameter in model.parameters()]
assert not any((shard == 7).any() for shard in shards)
here, whole = sum(shard.numel() for shard in shards), sum(parameter.numel() for parameter in model.parameters())
assert 0.4 < here / whole < 0.6, (here, whole)
for name, parameter in model.named_parameters():
    value = parameter.full_tensor().detach()
    if name.endswith("dense.weight"):
        assert 0.018 < value.std() < 0.022, name
    if "layernorm_after" in name:
        assert not value.any(), name

torch.manual_seed(0)
expected = Swinv2ForImageClassification(config).state_dict() if dist.get_rank() == 0 else {}
options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
set_model_state_dict(model, dict(expected), options=options)
loaded = {name: parameter.full_tensor() for name, parameter in model.named_parameters()}
assert all(torch.equal(loaded[name], value) for name, value in expected.items())
model(torch.randn(1, 3, 32, 32), labels=torch.tensor([1])).loss.backward()
assert all(parameter.grad is not None for parameter in model.parameters())
print("DONE")
dist.destroy_process_group()
"""


def test_shards_are_materialised_from_the_meta_device(tmp_path: Path) -> None:
    """No process ever holds the whole model: fresh weights are drawn shard by shard, or come from the first process."""
    program = tmp_path / "materialise.py"
    program.write_text(MATERIALISE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert run_python(*launcher, str(program)).stdout.count("DONE") == 2


def test_replicas_take_the_same_steps(flags: list[str], tmp_path: Path) -> None:
    """Without sharding, too: each process has its part of the batch."""
    train([*flags, *STEADY], tmp_path / "one", processes=0, batch_size=8)
    train([*flags, *STEADY], tmp_path / "two", processes=2, batch_size=4)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
