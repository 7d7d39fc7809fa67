"""The optimiser of the shipped model: every parameter in its group, and a state that survives."""

import copy

import pytest
import torch
from torch import nn

from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.train.optim.muon import MuonAdamW, hidden_matrices, muon_groups


@pytest.fixture
def model() -> Swinv2ForImageClassification:
    torch.manual_seed(0)
    config = Swinv2Config(
        image_size=32, patch_size=2, window_size=4, embed_dim=16, depths=[1, 2], num_heads=[1, 2], num_labels=3
    )
    return Swinv2ForImageClassification(config)


def optimizer_for(model: nn.Module) -> MuonAdamW:
    return MuonAdamW(model, matrix_learning_rate=5e-3, learning_rate=2e-3, weight_decay=0.05)


def draw_images(seed: int) -> torch.Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def step(model: nn.Module, optimizer: MuonAdamW, seed: int) -> float:
    loss = model(draw_images(seed), labels=torch.arange(8) % 3).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_every_parameter_is_in_one_group(model):
    optimizer = optimizer_for(model)
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_muon_gets_the_matrices_of_the_network_and_only_they_decay(model):
    chosen = {id(matrix) for matrix in hidden_matrices(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    kinds = ("query.weight", "key.weight", "value.weight", "dense.weight", "reduction.weight")
    expected = {name for name, _ in model.named_parameters() if name.endswith(kinds)}
    assert names == expected
    decays = [group["weight_decay"] for group in optimizer_for(model).param_groups]
    assert decays == [0.05, 0.0]


def test_its_steps_are_those_of_the_two_optimisers(model):
    twin = copy.deepcopy(model.eval())
    matrices = hidden_matrices(twin)
    others = [parameter for parameter in twin.parameters() if not any(parameter is matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=5e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    optimizer = optimizer_for(model)
    for seed in range(3):
        step(model, optimizer, seed)
        twin(draw_images(seed), labels=torch.arange(8) % 3).loss.backward()
        for part in (muon, adamw):
            part.step()
            part.zero_grad()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_what_is_frozen_is_in_no_group(model):
    model.swinv2.embeddings.requires_grad_(False)
    grouped = {name for group in muon_groups(model, 5e-3, 2e-3, 0.05) for name in group["names"]}
    assert grouped == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(grouped) < len(list(model.parameters()))


def test_it_learns(model):
    optimizer = optimizer_for(model.train())
    losses = [step(model, optimizer, 0) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_saved_state_resumes_bit_for_bit(model):
    optimizer = optimizer_for(model.eval())
    for seed in range(3):
        step(model, optimizer, seed)
    twin = copy.deepcopy(model)
    twin_optimizer = optimizer_for(twin)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, 7)
    step(twin, twin_optimizer, 7)
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_schedule_reaches_both_parts(model):
    optimizer = optimizer_for(model)
    # What transformers' schedules take an absolute least rate for.
    assert optimizer.defaults["lr"] == 2e-3
    # What is loaded takes the place of the groups.
    optimizer.load_state_dict(optimizer.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    step(model, optimizer, 0)
    schedule.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [2.5e-3, 1e-3]
