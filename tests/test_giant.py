"""The largest models: built without memory, and filled from files shard by shard."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.zoo import PRESETS

MEASURED = """
import json, resource, sys, time, zlib
import torch
from swinv2 import Swinv2Config, Swinv2ForImageClassification

def highest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def digest(model):
    return zlib.crc32(b"".join(
        zlib.crc32(value.contiguous().view(torch.uint8).numpy()).to_bytes(4, "big")
        for value in model.state_dict().values()
    ))

imported, began = highest(), time.process_time()
{work}
seconds, rise = time.process_time() - began, highest() - imported
digests = 0 if model.device.type == "meta" else digest(model)
print(json.dumps(dict(
    parameters=sum(p.numel() for p in model.parameters()), bytes=sum(p.nbytes for p in model.parameters()),
    seconds=seconds, rise=rise, rise_in_use=highest() - imported, digest=digests,
)))
"""
BUILD = """
with torch.device("meta"):
    model = Swinv2ForImageClassification(Swinv2Config(**json.loads(sys.argv[1])))
"""
SAVE = """
model = Swinv2ForImageClassification(Swinv2Config(**json.loads(sys.argv[1]))).bfloat16()
model.save_pretrained(sys.argv[2], max_shard_size="200MB")
"""
LOAD = """
model = Swinv2ForImageClassification.from_pretrained(sys.argv[2], dtype=getattr(torch, sys.argv[1]))
"""
FIELDS = PRESETS["giant-3b"].config_fields() | {"num_labels": 1000}


def measure(work: str, *arguments: str) -> dict[str, Any]:
    """Does the work in a process of its own, which says what it took beyond the import of libraries."""
    command = [sys.executable, "-c", MEASURED.replace("{work}", work), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "norms"), [("huge", 3), ("giant-1b", 0), ("giant-3b", 7)])
def test_every_sixth_block_has_an_extra_norm(name: str, norms: int) -> None:
    """In the third stage: no other has six blocks."""
    with torch.device("meta"):
        model = Swinv2ForImageClassification(Swinv2Config(**PRESETS[name].config_fields()))
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    blocks = model.swinv2.encoder.layers[2].blocks
    found = [index for index, block in enumerate(blocks, 1) if isinstance(block.layernorm_extra, nn.LayerNorm)]
    assert found == [6 * number for number in range(1, norms + 1)]


@pytest.mark.slow
def test_three_billion_parameters_are_built_in_seconds() -> None:
    """Of the processor, and in less than a GiB."""
    found = measure(BUILD, json.dumps(FIELDS))
    assert f"{found['parameters'] / 1e9:.2f}" == "3.00"
    assert found["seconds"] < 10
    assert found["rise"] < 2**30


@pytest.mark.slow
def test_a_cut_down_giant_loads_shard_by_shard(tmp_path: Path) -> None:
    """One block in each stage, 312 million parameters: the same to the bit.

    As it is, in the memory of the model itself, and two shards at the most; converted to another type, the pages of its
    files come on top, which are free to drop.
    """
    fields = FIELDS | {"depths": [1, 1, 1, 1], "extra_norm_period": 1}
    saved = measure(SAVE, json.dumps(fields), str(tmp_path))
    shards = {path.name: path.stat().st_size for path in tmp_path.glob("*.safetensors")}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(shards) > 2
    assert set(index["weight_map"].values()) == shards.keys()
    assert index["metadata"]["total_size"] == saved["bytes"]

    loaded = measure(LOAD, "bfloat16", str(tmp_path))
    assert (loaded["parameters"], loaded["digest"]) == (saved["parameters"], saved["digest"])
    assert loaded["rise_in_use"] < loaded["bytes"] + 2 * max(shards.values())
    widened = measure(LOAD, "float32", str(tmp_path))
    assert widened["bytes"] == 2 * saved["bytes"]
    assert widened["rise_in_use"] < 1.1 * (widened["bytes"] + sum(shards.values()))
