"""Tensors that are not those of one whole network: missing, unknown, there twice, of the wrong shape."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from conversions import NAMED, Damage, File, leave_out, put, refused, save

BLOCK = "layers.0.blocks.1."


DAMAGE = {
    "missing-matrix": (leave_out(f"{BLOCK}attn.qkv.weight"), f"missing: {BLOCK}attn.qkv.weight"),
    "missing-first": (leave_out("patch_embed.proj.weight"), "missing: patch_embed.proj.weight"),
    "missing-last": (leave_out("norm.bias"), "missing: norm.bias"),
    "missing-head-bias": (leave_out("head.bias"), "missing: head.bias"),
    "extra": (put("extra.weight", torch.ones(2)), "unknown: extra.weight"),
    "extra-norm-of-a-map": (put("norm0.weight", torch.ones(16)), "unknown: norm0.weight"),
    "extra-merging": (put("layers.1.downsample.norm.bias", torch.ones(64)), "unknown: layers.1.downsample.norm.bias"),
    "under-two-names": (
        put(f"{BLOCK}attn.rpe_mlp.0.bias", torch.ones(512)),
        f"under two names: {BLOCK}attn.rpe_mlp.0.bias",
    ),
    "wrong-shape": (put(f"{BLOCK}norm1.weight", torch.ones(17)), f"{BLOCK}norm1.weight ([17], expected [16])"),
    "wrong-rank": (put(f"{BLOCK}attn.qkv.weight", torch.ones(7)), f"{BLOCK}attn.qkv.weight ([7] cannot be divided"),
    "wrong-heads": (put(f"{BLOCK}attn.logit_scale", torch.ones(3, 1, 1)), f"{BLOCK}attn.logit_scale ([3, 1, 1]"),
    "huge-number": (
        put("layers.0.blocks.9999999999.norm1.weight", torch.ones(16)),
        "unknown: layers.0.blocks.9999999999",
    ),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_tensors(damage: Damage, expected: str, file: File, tmp_path: Path) -> None:
    damage(file)
    assert expected in refused(save({"model": file}, tmp_path / NAMED), tmp_path)


def test_everything_that_does_not_fit_is_in_one_error(file: File, tmp_path: Path) -> None:
    for name in ("norm.bias", f"{BLOCK}attn.q_bias"):
        del file[name]
    file |= {"first.extra": torch.ones(1), "second.extra": torch.ones(1), "head.bias": torch.ones(4)}
    sentence = refused(save({"model": file}, tmp_path / NAMED), tmp_path)
    for part in ("norm.bias", f"{BLOCK}attn.q_bias", "first.extra", "second.extra", "head.bias ([4], expected [5])"):
        assert part in sentence


@pytest.mark.parametrize(
    "first",
    ["patch_embed.proj.weight", "layers.1.blocks.{0,1}.attn.logit_scale", "layers.0.blocks.{0,1}.mlp.fc1.weight"],
)
def test_it_is_one_error_too_where_sizes_are_missing(first: str, file: File, tmp_path: Path) -> None:
    """Even the tensors that show the sizes may be among them."""
    missing = [first.replace("{0,1}", block) for block in ("0", "1")]
    missing += ["norm.bias", f"{BLOCK}attn.q_bias", f"{BLOCK}attn.qkv.weight", "layers.0.downsample.reduction.weight"]
    for name in dict.fromkeys(missing):
        del file[name]
    file["extra"] = torch.ones(1)
    sentence = refused(save({"model": file}, tmp_path / NAMED), tmp_path)
    named = sentence.partition("missing: ")[2].partition(";")[0].split(", ")
    assert sorted(named) == sorted(set(missing))
    assert "unknown: extra" in sentence


def test_a_size_of_another_rank(file: File, tmp_path: Path) -> None:
    """It is there, so it is not called missing."""
    file["patch_embed.proj.weight"] = torch.ones(16, 48)
    sentence = refused(save({"model": file}, tmp_path / NAMED), tmp_path)
    assert "patch_embed.proj.weight ([16, 48], expected 4 lengths)" in sentence
    assert "missing" not in sentence


@pytest.mark.parametrize(
    "stray",
    [
        "layers.0.blocks.3000.norm1.weight",
        "layers.9999.blocks.0.norm1.weight",
        "layers.3.blocks.0.norm1.weight",
        "layers.0.blocks.2.attn.relative_coords_table",
        "layers.70.blocks.0.attn_mask",
    ],
)
def test_blocks_with_numbers_of_their_own(
    stray: str, file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named, and nothing is built for the numbers between."""
    file[stray] = torch.ones(16)
    monkeypatch.setattr("swinv2.convert.network.Swinv2Config", Mock(side_effect=AssertionError))
    sentence = refused(save({"model": file}, tmp_path / NAMED), tmp_path)
    assert f"without a gap: {stray} belongs to none of the 4 blocks" in sentence


def test_more_stages_than_any_network_has(file: File, tmp_path: Path) -> None:
    for stage in range(2, 70):
        file[f"layers.{stage}.blocks.0.norm1.weight"] = torch.ones(16)
    assert "layers.69.blocks.0.norm1.weight belong to none" in refused(
        save({"model": file}, tmp_path / NAMED), tmp_path
    )
