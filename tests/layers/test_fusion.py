"""What is remembered of modules is never believed after a change: each change comes after a first call."""

import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import peers
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.layers.block import SwinTransformerBlock
from swinv2.layers.fusion import FUSED, Memory, explain_fusion
from swinv2.ops.backends import CPU, TRITON
from swinv2.ops.cpu import library

pytestmark = [
    pytest.mark.skipif(library.refuse() is not None, reason=str(library.refuse())),
    # Of peft with the newest transformers, and of torch's pruning and quantisation.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

Model = Swinv2ForImageClassification
FIELDS = {"image_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "num_labels": 6}


def build(**fields: Any) -> Model:
    return peers.draw_weights(Model(Swinv2Config(**FIELDS | fields))).eval()


def block_of(model: nn.Module, index: int = 1) -> SwinTransformerBlock:
    return [module for module in model.modules() if isinstance(module, SwinTransformerBlock)][index]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 50, 70, generator=torch.Generator().manual_seed(1))


def expected_of(model: nn.Module, images: Tensor) -> Tensor:
    """What the plain methods answer, for the model as it is now."""
    table = dict(FUSED)
    FUSED.clear()
    try:
        with torch.no_grad():
            return model(images).logits
    finally:
        FUSED.update(table)


def hook(model: Model) -> None:
    block_of(model).intermediate.register_forward_hook(lambda module, inputs, output: output.flip(-1))


def hook_before(model: Model) -> None:
    block_of(model).attention.self.value.register_forward_pre_hook(lambda module, inputs: (inputs[0].flip(-1),))


def hook_on_the_block(model: Model) -> None:
    block_of(model).register_forward_hook(lambda module, inputs, output: output.flip(-1))


def hook_in_a_new_dict(model: Model) -> None:
    layer = block_of(model).output.dense
    layer._forward_hooks = copy.copy(layer._forward_hooks)
    layer.register_forward_hook(lambda module, inputs, output: output.flip(-1))


def replace_forward(model: Model) -> None:
    layer = block_of(model).attention.output
    forward = layer.forward
    layer.forward = lambda features: forward(features).flip(-1)


def replace_module(model: Model) -> None:
    block_of(model).layernorm_after = nn.LayerNorm(24, elementwise_affine=False)


def replace_block(model: Model) -> None:
    model.swinv2.encoder.layers[0].blocks[1] = copy.deepcopy(block_of(model, 0))


def replace_parameter(model: Model) -> None:
    layer = block_of(model).intermediate.dense
    layer.weight = nn.Parameter(torch.flip(layer.weight.detach(), [0]))


def become_another_class(model: Model) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).flip(-1)

    block_of(model).attention.self.key.__class__ = Doubled
    block_of(model).attention.self.value.__class__ = Doubled


def lora(model: Model) -> Any:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False))
    return adapted.eval()


def merge_lora(model: Model) -> Any:
    adapted = lora(model)
    adapted.merge_adapter()
    return adapted


def quantise(model: Model) -> None:
    layer = block_of(model).intermediate
    layer.dense = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer.dense), {nn.Linear})[0]


def prune_a_layer(model: Model) -> None:
    prune.random_unstructured(block_of(model).intermediate.dense, "weight", 0.5)


def prune_for_good(model: Model) -> None:
    prune_a_layer(model)
    prune.remove(block_of(model).intermediate.dense, "weight")


def offload(model: Model) -> None:
    from accelerate import cpu_offload

    cpu_offload(block_of(model), torch.device("cpu"))


def cast(model: Model) -> None:
    model.double()


def cast_a_layer_through_data(model: Model) -> None:
    for parameter in block_of(model).parameters():
        parameter.data = parameter.data.double().float() * 0.5


def load_others(model: Model) -> None:
    model.load_state_dict({name: 0.5 * tensor for name, tensor in model.state_dict().items()})


def load_by_assignment(model: Model) -> None:
    model.load_state_dict({name: 0.5 * tensor for name, tensor in model.state_dict().items()}, assign=True)


def write_through_data(model: Model) -> None:
    for parameter in block_of(model).parameters():
        parameter.data.mul_(0.5)


def write_the_position_bias(model: Model) -> None:
    block_of(model).attention.self.continuous_position_bias_mlp[2].weight.data.mul_(-1)


def write_the_scale(model: Model) -> None:
    block_of(model).attention.self.logit_scale.data.add_(1)


def turn_a_weight_through_data(model: Model) -> None:
    """Where it was, in its dtype and shape, but with other strides."""
    weight = block_of(model).attention.self.query.weight
    weight.data = weight.data.T


def learn(model: Model) -> None:
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.enable_grad():
        model(torch.randn(2, 3, 50, 70)).logits.square().sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    model.eval()


def other_eps(model: Model) -> None:
    block_of(model).layernorm_before.eps = 1.0


def other_activation(model: Model) -> None:
    block_of(model).intermediate.activation = nn.SiLU()


def other_dilation(model: Model) -> None:
    projection = model.swinv2.embeddings.patch_embeddings.projection
    projection.dilation, projection.padding = (3, 3), (3, 3)


def other_padding(model: Model) -> None:
    model.swinv2.embeddings.patch_embeddings.projection.padding = (1, 1)


def other_stride(model: Model) -> None:
    """Of patches that overlap: more of them."""
    model.swinv2.embeddings.patch_embeddings.projection.stride = (2, 2)


def other_patch_size(model: Model) -> None:
    """Only that to which images are padded."""
    model.swinv2.embeddings.patch_embeddings.patch_size = (64, 32)


def other_windows(model: Model) -> None:
    model.set_image_size(64, window_size=8)


def other_order(model: Model) -> None:
    """Blocks in another order."""
    blocks = model.swinv2.encoder.layers[0].blocks
    blocks[0], blocks[1] = blocks[1], blocks[0]


CHANGES = [
    *(hook, hook_before, hook_on_the_block, hook_in_a_new_dict, replace_forward, replace_module, replace_block),
    *(replace_parameter, become_another_class, lora, merge_lora, quantise, prune_a_layer, prune_for_good, offload),
    *(cast, cast_a_layer_through_data, load_others, load_by_assignment, write_through_data, write_the_position_bias),
    *(write_the_scale, turn_a_weight_through_data, learn, other_eps, other_activation, other_windows),
    *(other_order, other_dilation, other_padding, other_stride, other_patch_size),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_after_a_first_call_is_heard(change: Callable[[Model], Any], images: Tensor) -> None:
    model = build()
    with torch.no_grad():
        before = model(images).logits
        assert peers.difference(before, expected_of(model, images)) < 1e-5
        changed = change(model) or model
        if change is cast:
            images = images.double()
        after = changed(images).logits
        assert peers.difference(after, expected_of(changed, images)) < 1e-5
        assert peers.difference(after, before) > 1e-4 or change in (offload, cast)
        assert torch.equal(changed(images).logits, after)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_and_with_gradients(change: Callable[[Model], Any], images: Tensor) -> None:
    if change is quantise:
        pytest.skip("what is quantised has no gradient")
    model = build()
    model(images)
    changed = change(model) or model
    if change is cast:
        images = images.double()
    found = changed(images).logits
    assert peers.difference(found.detach(), expected_of(changed, images)) < 1e-5


def test_what_is_taken_away_again_is_no_more_there(images: Tensor) -> None:
    model = build()
    with torch.no_grad():
        before = model(images).logits
        handle = block_of(model).intermediate.register_forward_hook(lambda module, inputs, output: output.flip(-1))
        assert peers.difference(model(images).logits, before) > 1e-3
        handle.remove()
        assert torch.equal(model(images).logits, before)
        adapted = lora(model)
        assert peers.difference(adapted(images).logits, before) > 1e-3
        plain = adapted.unload()
        assert peers.difference(plain(images).logits, before) < 1e-5


def test_merged_adapters_leave_layers_that_are_used_again(images: Tensor) -> None:
    model = build()
    with torch.no_grad():
        model(images)
        merged = lora(model).merge_and_unload()
        assert peers.difference(merged(images).logits, expected_of(merged, images)) < 1e-5
        block = block_of(merged)
        assert "is one operation" in explain_fusion(block, "attention_branch", torch.zeros(1, 8, 8, 24), CPU)


def test_a_module_that_is_moved_is_not_read() -> None:
    model = build()
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
        block_of(model).output.to("meta")
        with pytest.raises(RuntimeError, match="meta"):
            model(torch.randn(1, 3, 64, 64))


def test_frozen_layers_have_no_gradient(images: Tensor) -> None:
    model = build()
    model(images).logits.sum().backward()
    model.zero_grad()
    block_of(model).intermediate.requires_grad_(False)
    model(images).logits.sum().backward()
    assert all(parameter.grad is None for parameter in block_of(model).intermediate.parameters())
    assert all(parameter.grad is not None for parameter in block_of(model).attention.parameters())


def test_dropping_in_training_mode_is_heard(images: Tensor) -> None:
    """As in estimates of uncertainty."""
    model = build(drop_path_rate=0.9, hidden_dropout_prob=0.5)
    with torch.no_grad():
        before = model(images).logits
        model.train()
        assert peers.difference(model(images).logits, before) > 1e-2
        model.eval()
        assert torch.equal(model(images).logits, before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_models_of_their_own(duplicate: Callable[[Model], Model], images: Tensor) -> None:
    model = build()
    with torch.no_grad():
        before = model(images).logits
        other = duplicate(model)
        memories = [module.memory for module in other.modules() if hasattr(module, "memory")]
        assert memories
        assert not any(memories)
        assert torch.equal(other(images).logits, before)
        write_through_data(model)
        assert torch.equal(other(images).logits, before)
        del model
        gc.collect()
        assert torch.equal(other(images).logits, before)


def test_what_is_remembered_is_in_no_file() -> None:
    model = build()
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert any(isinstance(module.__dict__.get("memory"), Memory) and module.memory for module in model.modules())
    assert not [name for name in model.state_dict() if "memory" in name]


def test_a_first_call_in_inference_mode_harms_no_later_one(images: Tensor) -> None:
    model = build()
    with torch.inference_mode():
        before = model(images).logits
    assert torch.equal(before, model(images).logits.detach()) or peers.difference(before, model(images).logits) < 1e-5
    model(images).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_threads_share_a_model(images: Tensor) -> None:
    """While one changes nothing, and sizes differ."""
    model, found = build(), {}
    sizes = [(50, 70), (64, 64), (33, 90), (64, 64)]
    batches = [torch.randn(1, 3, *size) for size in sizes]
    with torch.no_grad():
        expected = [expected_of(model, batch) for batch in batches]

    def work(index: int) -> None:
        with torch.no_grad():
            found[index] = [model(batches[index]).logits for _ in range(20)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == set(range(len(batches)))
    for index, answers in found.items():
        assert all(peers.difference(answer, expected[index]) < 1e-5 for answer in answers)


def test_a_compiled_part_is_called(images: Tensor) -> None:
    model = build()
    with torch.no_grad():
        before = model(images).logits
        calls: list[int] = []

        def counting(graph: Any, inputs: Any) -> Any:
            calls.append(1)
            return graph.forward

        block_of(model).intermediate.compile(backend=counting)
        assert peers.difference(model(images).logits, before) < 1e-5
        assert calls


@pytest.fixture
def sharded() -> Iterator[Callable[[Model], None]]:
    """FSDP2 in one process."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    yield lambda model: [fully_shard(block_of(model, index)) for index in range(4)] and None
    destroy_process_group()


def test_blocks_that_are_sharded_are_called(sharded: Callable[[Model], None], images: Tensor) -> None:
    model = build()
    with torch.no_grad():
        model(images)
        before = model(images).logits
        sharded(model)
        assert peers.difference(model(images).logits, before) < 1e-5
    block = block_of(model)
    assert "calls its modules" in explain_fusion(block, "attention_branch", torch.zeros(1, 8, 8, 24), CPU)


def test_every_row_is_explained() -> None:
    block, x = block_of(build()), torch.zeros(1, 8, 8, 24)
    assert explain_fusion(block, "mlp_branch", x, CPU) == "mlp_branch is one operation"
    assert "it needs a GPU" in explain_fusion(block, "mlp_branch", x, TRITON) or "one operation" in explain_fusion(
        block, "mlp_branch", x, TRITON
    )
    assert "eager has no operation for it" in explain_fusion(block, "mlp_branch", x, "eager")
    hook(model := build())
    assert explain_fusion(block_of(model), "mlp_branch", x, CPU).endswith(
        "intermediate has hooks, or another forward than its class"
    )
    block_of(model).intermediate = nn.Identity()
    assert "intermediate is not as it was built" in explain_fusion(block_of(model), "mlp_branch", x, CPU)
    dropping = block_of(build(hidden_dropout_prob=0.5)).train()
    assert "dropout is on" in explain_fusion(dropping, "mlp_branch", x, CPU)
    assert "different dtypes" in explain_fusion(block, "mlp_branch", x.double(), CPU)
    assert "another number of channels" in explain_fusion(block, "mlp_branch", x[..., :12], CPU)


@pytest.mark.parametrize("with_gradients", [False, True])
def test_the_eager_backend_calls_no_kernel(
    with_gradients: bool, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is plain PyTorch, as it says."""
    monkeypatch.setattr(library, "kernel", lambda *names: pytest.fail(f"{names} was called"))
    model = build(attn_implementation="eager").train(with_gradients)
    with torch.set_grad_enabled(with_gradients):
        logits = model(images).logits
    if with_gradients:
        logits.sum().backward()


def test_a_stage_is_one_call_for_its_blocks_and_one_for_its_merging(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    kernel = library.kernel
    monkeypatch.setattr(library, "kernel", lambda name, *rest: (calls.append(name), kernel(name, *rest))[1])
    with torch.no_grad():
        build()(images)
    # The patches too are projected and normalised by one call.
    assert calls == ["project", "run_blocks", "project", "run_blocks"]


def test_upernet_trains_with_drop_path() -> None:
    """The gradient of a map of channels first, of the images that drop path keeps, has strides of its own."""
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    import swinv2

    swinv2.register()
    config = Swinv2Config(
        image_size=128, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, drop_path_rate=0.5,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    parts = UperNetConfig(
        backbone_config=config, num_labels=3, hidden_size=8, auxiliary_in_channels=64, auxiliary_channels=8
    )
    model = UperNetForSemanticSegmentation(parts).train()
    labels = torch.randint(0, 3, (2, 128, 128))
    for seed in range(20):
        torch.manual_seed(seed)
        model(torch.randn(2, 3, 128, 128), labels=labels).loss.backward()


@pytest.mark.parametrize("context", [torch.device, torch.set_default_device], ids=["in a context", "for good"])
def test_a_default_device_is_not_that_of_the_kernels(context: Callable[[str], Any], images: Tensor) -> None:
    """Memory that they work in is on the CPU, and nothing that others use later is anywhere else."""
    model, window = build(), {"window_size": 3}
    expected = expected_of(model, images)
    try:
        entered = context("meta")
        with entered if entered is not None else nullcontext(), torch.no_grad():
            assert torch.equal(model(images).logits, model(images).logits)
            assert peers.difference(model(images).logits, expected) < 1e-5
    finally:
        torch.set_default_device(None)
    other = build(**window)
    with torch.no_grad():
        assert peers.difference(other(images).logits, expected_of(other, images)) < 1e-5


def test_what_is_remembered_does_not_keep_weights_that_were_moved(images: Tensor) -> None:
    model = build()
    with torch.no_grad():
        model(images)
    addresses = {parameter.data_ptr() for parameter in block_of(model).parameters()}
    with torch.no_grad():
        model.to("meta")(images.to("meta"))
    gc.collect()
    plain = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
    assert not [each for each in plain if each.device.type == "cpu" and each.data_ptr() in addresses]


def test_a_shallow_copy_runs_its_own_blocks() -> None:
    stage = build().swinv2.encoder.layers[0]
    x = torch.randn(1, 8, 8, 24)
    with torch.no_grad():
        before = stage(x, CPU)[1].tokens
        other = copy.copy(stage)
        other._modules = dict(stage._modules)
        other.blocks = copy.deepcopy(stage.blocks)
        write_through_data_of(other.blocks)
        assert not torch.allclose(other(x, CPU)[1].tokens, before, atol=1e-3)
        assert torch.equal(stage(x, CPU)[1].tokens, before)


def write_through_data_of(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(0.5)


def scale_in_fp64(model: Model) -> None:
    block_of(model).attention.self.logit_scale.data = block_of(model).attention.self.logit_scale.data.double()


def bias_in_fp64(model: Model) -> None:
    block_of(model).attention.self.continuous_position_bias_mlp.double()


def a_longer_bias(model: Model) -> None:
    block_of(model).attention.self.continuous_position_bias_mlp.append(nn.Tanh())


def a_window_of_its_own(model: Model) -> None:
    attention = block_of(model).attention.self
    attention.geometry = replace(attention.geometry, window=(2, 2), shift=(1, 1))


@pytest.mark.parametrize("change", [scale_in_fp64, bias_in_fp64, a_longer_bias, a_window_of_its_own])
@pytest.mark.parametrize("is_first", [True, False])
def test_what_the_kernels_do_not_know_is_called(change: Callable[[Model], None], is_first: bool) -> None:
    model, images = build(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        if not is_first:
            model(images)
        change(model)
        assert peers.difference(model(images).logits, expected_of(model, images)) < 1e-5
