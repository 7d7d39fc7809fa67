"""Living among the tools people use: transformers' loading, Auto classes, pipelines and Trainer, accelerate, PEFT,
torch.compile and torch.export, half precision, and the backbone inside other models."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

import swinv2
from swinv2 import Swinv2Backbone, Swinv2Config, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling

SMALL = {
    "image_size": 64,
    "window_size": 4,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "encoder_stride": 8,
    "num_labels": 3,
}


@pytest.fixture
def model() -> Swinv2ForImageClassification:
    torch.manual_seed(0)
    return randomise(Swinv2ForImageClassification(Swinv2Config(**SMALL)).eval())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def randomise(model: nn.Module) -> nn.Module:
    """Draws every post-norm anew: at zero, as fresh blocks have them, they would hide what the blocks do."""
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return model


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images).logits


def save_with_processor(model: nn.Module, folder) -> None:
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def test_sharded_folder_loads_bit_exactly(model, images, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = Swinv2ForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, images), logits(model, images))


@pytest.mark.parametrize(
    "name", ["Swinv2Model", "Swinv2ForImageClassification", "Swinv2ForMaskedImageModeling", "Swinv2Backbone"]
)
@pytest.mark.parametrize(("writer", "reader"), [(transformers, swinv2), (swinv2, transformers)])
def test_folders_travel_both_ways(name, writer, reader, tmp_path):
    written = getattr(writer, name)(writer.Swinv2Config(**SMALL))
    written.save_pretrained(tmp_path)
    loaded, report = getattr(reader, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    for key, value in written.state_dict().items():
        if key in loaded.state_dict():
            assert torch.equal(loaded.state_dict()[key], value), key
    assert {k for k, _ in written.named_parameters()} == {k for k, _ in loaded.named_parameters()}


def test_classifier_checkpoint_gives_backbone_and_pretraining_encoder(model, tmp_path):
    model.save_pretrained(tmp_path)
    weight = model.swinv2.encoder.layers[0].blocks[1].attention.self.query.weight
    backbone, report = Swinv2Backbone.from_pretrained(tmp_path, output_loading_info=True, out_indices=[1, 2])
    assert not report["missing_keys"]
    assert torch.equal(backbone.encoder.layers[0].blocks[1].attention.self.query.weight, weight)
    pretraining = Swinv2ForMaskedImageModeling.from_pretrained(tmp_path)
    assert torch.equal(pretraining.swinv2.encoder.layers[0].blocks[1].attention.self.query.weight, weight)


def test_other_number_of_classes_gives_a_fresh_head(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = Swinv2ForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert loaded.classifier.weight.shape == (7, 48)
    assert 0.01 < loaded.classifier.weight.std() < 0.03  # drawn by our table, with 0.02


def test_auto_classes_build_ours(registered, model, tmp_path):
    save_with_processor(model, tmp_path)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is Swinv2Config
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is Swinv2ForImageClassification
    assert type(transformers.AutoModel.from_pretrained(tmp_path)) is swinv2.Swinv2Model
    pretraining = transformers.AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    assert type(pretraining) is Swinv2ForMaskedImageModeling
    backbone = transformers.AutoBackbone.from_config(Swinv2Config(**SMALL, out_features=["stage1", "stage2"]))
    assert type(backbone) is Swinv2Backbone
    assert type(transformers.AutoImageProcessor.from_pretrained(tmp_path)).__name__.startswith("ViTImageProcessor")


def test_pipeline_answers_as_the_model_does(registered, model, tmp_path):
    save_with_processor(model, tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    pipeline = transformers.pipeline("image-classification", model=str(tmp_path), device="cpu")
    assert type(pipeline.model) is Swinv2ForImageClassification
    answer = {row["label"]: row["score"] for row in pipeline(image, top_k=3)}
    inputs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")
    expected = logits(model, inputs["pixel_values"]).softmax(-1)[0]
    for index, label in model.config.id2label.items():
        assert answer[label] == pytest.approx(expected[index].item(), abs=1e-6)


def test_device_map_auto_offloads_to_disk(model, images, tmp_path):
    # Through files: a checkpoint in shards, and room for a block or two in memory; "cpu" is the fastest device here.
    model.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    loaded = Swinv2ForImageClassification.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": int(2.5 * largest_block(model))},
        offload_folder=tmp_path / "offload",
    ).eval()
    assert "disk" in loaded.hf_device_map.values()
    assert "cpu" in loaded.hf_device_map.values()
    assert any(parameter.is_meta for parameter in loaded.parameters())
    odd = torch.randn(1, 3, 50, 70)  # with padding
    for pixels in (images, odd):
        assert torch.allclose(logits(loaded, pixels), logits(model, pixels), atol=1e-6)


def largest_block(model: nn.Module) -> int:
    """Bytes of the largest module that must not be split."""
    names = model._no_split_modules
    return max(sum(p.numel() * 4 for p in m.parameters()) for m in model.modules() if type(m).__name__ in names)


def test_device_map_auto_never_splits_a_block(model):
    accelerate = pytest.importorskip("accelerate")
    device_map = accelerate.infer_auto_device_map(
        model,
        max_memory={"cpu": int(2.5 * largest_block(model)), "disk": 10**9},
        no_split_module_classes=list(model._no_split_modules),
    )
    assert "disk" in device_map.values()
    assert not [name for name in device_map if ".blocks." in name and name.split(".blocks.")[1].count(".")]


class ImageDataset(torch.utils.data.Dataset):
    """Sixteen images of three classes that differ in brightness."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": noise * 0.1 + index % 3 - 1, "labels": torch.tensor(index % 3)}


# Renamed between the supported versions of transformers.
CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(transformers.TrainingArguments, "activation_checkpointing")
    else "gradient_checkpointing"
)


def trainer_for(model: nn.Module, folder, **settings) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to="none",
        learning_rate=5e-3,
        logging_steps=1,
        disable_tqdm=True,
        **settings,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=ImageDataset(), eval_dataset=ImageDataset())


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_trainer_learns_saves_and_resumes(model, tmp_path):
    trainer = trainer_for(model, tmp_path, max_steps=12, save_steps=6)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    again = trainer_for(copy.deepcopy(model), tmp_path, max_steps=12, save_steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    resumed = [row["loss"] for row in again.state.log_history if "loss" in row]
    assert resumed[-1] == pytest.approx(losses[-1], rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_trainer_with_activation_checkpointing_takes_the_same_steps(model, tmp_path):
    losses = []
    for checkpointing in (False, True):
        trainer = trainer_for(
            copy.deepcopy(model), tmp_path / str(checkpointing), max_steps=3, **{CHECKPOINTING: checkpointing}
        )
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # in peft
def test_lora_on_query_and_value(model, images):
    peft = pytest.importorskip("peft")
    before = logits(model, images)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "value"]))
    # An untrained adapter adds nothing, padding included.
    assert torch.allclose(logits(adapted, images), before, atol=1e-6)
    adapted.train()
    loss = adapted(images, labels=torch.tensor([0, 1])).loss
    loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for n, p in adapted.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    odd = torch.randn(1, 3, 50, 70)  # needs padding, whose value goes through the adapter as well
    separate = logits(adapted.eval(), odd)
    merged = logits(adapted.merge_and_unload().eval(), odd)
    assert torch.allclose(separate, merged, atol=1e-5)


def test_tracing_tests_pass_without_signature_checks():
    """torch.compile cannot look through the checks of signatures, so its tests run in a process without them."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent / "tracing")]
    environment = {**os.environ, "SWINV2_TYPECHECK": "0"}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert answer.returncode == 0, answer.stdout[-3000:]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mask_padding", [False, True])
def test_half_precision_with_padding_has_no_nan(dtype, implementation, mask_padding, tmp_path):
    torch.manual_seed(0)
    config = Swinv2Config(**SMALL, mask_padding=mask_padding)
    randomise(Swinv2ForImageClassification(config)).save_pretrained(tmp_path)
    loaded = Swinv2ForImageClassification.from_pretrained(tmp_path, dtype=dtype, attn_implementation=implementation)
    precise = Swinv2ForImageClassification.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 50, 70)  # 13 x 18 patches in windows of 4
    assert loaded.dtype == dtype
    answer = logits(loaded.eval(), pixels.to(dtype))
    assert answer.dtype == dtype
    exact = logits(precise, pixels)
    assert (answer.float() - exact).abs().max() < 0.05 * exact.abs().max()
    loaded.train()
    loaded(pixels.to(dtype), labels=torch.tensor([0, 1])).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in loaded.parameters())


@pytest.mark.parametrize("host", ["upernet", "mask2former"])
def test_backbone_inside_other_models(registered, host):
    backbone = Swinv2Config(**{**SMALL, "depths": [1, 2, 1, 1], "num_heads": [2, 4, 4, 8]}, out_indices=[1, 2, 3, 4])
    pixels = torch.randn(2, 3, 64, 96)
    if host == "upernet":
        config = transformers.UperNetConfig(
            backbone_config=backbone,
            hidden_size=16,
            num_labels=5,
            auxiliary_channels=8,
            auxiliary_in_channels=24 * 4,
        )
        model = transformers.UperNetForSemanticSegmentation(config)
        output = model.eval()(pixels)
        assert output.logits.shape == (2, 5, 64, 96)
        body = model.backbone
    else:
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone,
            hidden_dim=32,
            feature_size=32,
            mask_feature_size=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=4,
            dim_feedforward=32,
            encoder_feedforward_dim=32,
            num_labels=5,
        )
        model = transformers.Mask2FormerForUniversalSegmentation(config)
        output = model.eval()(pixels)
        assert output.masks_queries_logits.shape[:2] == (2, 4)
        body = model.model.pixel_level_module.encoder
    assert type(body) is Swinv2Backbone


def test_import_is_light():
    """What torch and transformers import by themselves is not ours to answer for; what we add is."""
    heavy = {
        "triton",
        "gradio",
        "onnx",
        "openvino",
        "ray",
        "typer",
        "datasets",
        "accelerate",
        "timm",
        "rich",
        "pyarrow.parquet",
        "swinv2.cli",
    }
    imported = []
    for module in ("transformers.modeling_utils, transformers.models.auto.modeling_auto", "swinv2"):
        code = f"import sys, json, {module}; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        imported.append(set(json.loads(answer.stdout)))
    assert not imported[1] - imported[0]


@pytest.mark.hub
def test_published_checkpoint_on_the_photograph_of_cats():
    """transformers' own integration test: COCO val2017 000000039769 through the published tiny checkpoint."""
    import io
    import urllib.request

    name = "microsoft/swinv2-tiny-patch4-window8-256"
    with urllib.request.urlopen("http://images.cocodataset.org/val2017/000000039769.jpg") as response:
        image = Image.open(io.BytesIO(response.read()))
    model = Swinv2ForImageClassification.from_pretrained(name).eval()
    inputs = transformers.AutoImageProcessor.from_pretrained(name)(images=image, return_tensors="pt")
    answer = logits(model, inputs["pixel_values"])
    assert answer.shape == (1, 1000)
    assert torch.allclose(answer[0, :3], torch.tensor([-0.3951, -0.4292, 0.0025]), atol=1e-4)
