"""What people do to models: accumulate gradients, quantise, transform, trace, hook, share configurations."""

import copy
import json
import pickle

import pytest
import torch
import transformers
from torch import Tensor, nn

from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.errors import UsageError
from swinv2.loading import load_processor
from swinv2.train.optim.muon import MuonAdamW

SMALL = {"image_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "num_labels": 3}


@pytest.fixture
def model() -> Swinv2ForImageClassification:
    torch.manual_seed(0)
    model = Swinv2ForImageClassification(Swinv2Config(**SMALL, drop_path_rate=0.0)).eval()
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 50, 70, generator=torch.Generator().manual_seed(1))


class Noise(torch.utils.data.Dataset):
    """Eight images of noise."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pixels = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": pixels, "labels": torch.tensor(index % 3)}


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_accumulated_gradients_are_those_of_the_whole_batch(model, tmp_path):
    norms, losses = [], []
    for steps in (1, 4):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / str(steps)),
            per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps,
            max_steps=1,
            logging_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model=copy.deepcopy(model), args=arguments, train_dataset=Noise())
        trainer.train()
        row = next(row for row in trainer.state.log_history if "loss" in row)
        norms.append(row["grad_norm"])
        losses.append(row["loss"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_dynamic_quantisation_runs_and_is_near(model, size, as_a_user):
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    with torch.no_grad():
        exact, near = model(pixels).logits, quantised(pixels).logits
    assert (near - exact).abs().max() < 0.1 * (exact[0] - exact[1]).abs().max() + 0.1 * exact.abs().max()


def test_function_transforms_give_the_gradient(model, images, as_a_user):
    def loss(pixels: torch.Tensor) -> torch.Tensor:
        return model(pixels).logits.square().sum()

    pixels = images.clone().requires_grad_()
    loss(pixels).backward()
    assert torch.allclose(torch.func.grad(loss)(images), pixels.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_jit_trace(model, images, as_a_user):
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values).logits

    with torch.no_grad():
        traced = torch.jit.trace(Logits(), images, check_trace=False)
        assert torch.allclose(traced(images), model(images).logits, atol=1e-5)


def test_double_precision_is_double_throughout(model):
    double = copy.deepcopy(model).double()
    pixels = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parameter = double.swinv2.encoder.layers[0].blocks[1].attention.self.continuous_position_bias_mlp[2].weight
    double(pixels).logits.sum().backward()
    step = 1e-4
    with torch.no_grad():
        parameter[0, 5] += step
        above = double(pixels).logits.sum()
        parameter[0, 5] -= 2 * step
        below = double(pixels).logits.sum()
    assert parameter.grad[0, 5].item() == pytest.approx((above - below).item() / (2 * step), rel=1e-5, abs=1e-10)


def test_hooks_see_whole_maps(model):
    seen = []
    dense = model.swinv2.encoder.layers[0].blocks[0].output.dense
    dense.register_forward_hook(lambda module, arguments, output: seen.append(tuple(output.shape)))
    with torch.no_grad():
        model(torch.zeros(8, 3, 256, 256))
    assert seen == [(8, 64, 64, 24)]


def test_a_model_of_another_size_leaves_the_shared_configuration_alone():
    config = Swinv2Config(**SMALL)
    first, second = Swinv2ForImageClassification(config), Swinv2ForImageClassification(config)
    first.set_image_size(128, window_size=8)
    assert (first.config.image_size, first.swinv2.config.image_size) == (128, 128)
    assert (second.config.image_size, second.config.window_size, config.image_size) == (64, 4, 64)


def test_the_pretraining_window_counts_on_each_axis():
    config = Swinv2Config(**{**SMALL, "pretrained_window_sizes": [[3, 0], 0]})
    model = Swinv2ForImageClassification(config)
    model.set_image_size(128, window_size=8)
    assert model.config.pretrained_window_sizes == [[3, 4], 4]


def test_files_of_composite_models_keep_their_old_keys():
    old = {"num_beams": 1, "tie_word_embeddings": True, "is_decoder": False, "use_cache": False, "torchscript": False}
    assert Swinv2Config(**SMALL, **old).image_size == 64
    encoder = Swinv2Config(**SMALL).to_dict() | old
    assert type(transformers.AutoConfig.for_model(**encoder)).__name__ == "Swinv2Config"


def test_labels_without_a_classifier_are_refused(images):
    model = Swinv2ForImageClassification(Swinv2Config(**{**SMALL, "num_labels": 0}))
    assert model(images).logits.shape == (2, 48)
    with pytest.raises(ValueError, match="num_labels is 0"):
        model(images, labels=torch.tensor([0, 1]))


def test_code_of_a_model_folder_is_never_run(model, tmp_path):
    model.save_pretrained(tmp_path)
    evil = {"auto_map": {"AutoImageProcessor": "evil.Evil"}, "image_processor_type": "Evil"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(evil))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(UsageError):
        load_processor(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_the_optimiser_survives_copying_and_pickling(model):
    optimizer = MuonAdamW(model, 5e-3, 2e-3, 0.05)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert len(twin.param_groups) == 2


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_images_gives_gradients_of_each() -> None:
    config = Swinv2Config(image_size=32, window_size=4, embed_dim=8, depths=[2, 1], num_heads=[1, 2], num_labels=3)
    model = Swinv2ForImageClassification(config).eval()
    images, parameters = torch.randn(3, 3, 32, 32), dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (image[None],)).logits.square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)
    for index, image in enumerate(images):
        model.zero_grad()
        model(image[None]).logits.square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][index], parameter.grad, rtol=1e-3, atol=1e-6)
