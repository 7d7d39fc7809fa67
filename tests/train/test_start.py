"""What a training starts from: new models, loaded ones, and what becomes of their heads and windows."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import peers
from swinv2 import Swinv2Config, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.errors import UsageError
from swinv2.train.data.augment import Pixels, make_processor
from swinv2.train.settings import FinetuneSettings, PretrainSettings
from swinv2.train.start import model_to_finetune, model_to_pretrain

FIELDS = {"image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]}
NAMES = ("cat", "dog", "newt")


@pytest.fixture
def needed(tmp_path: Path) -> dict[str, Any]:
    return {
        "data": "pictures",
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "report_to": "none",
        "dataloader_num_workers": 0,
    }


@pytest.fixture
def finetune(needed: dict[str, Any]) -> Any:
    return lambda names=NAMES, several=False, **given: model_to_finetune(
        FinetuneSettings(**(needed | given)), names, several
    )


@pytest.fixture
def pretrain(needed: dict[str, Any]) -> Any:
    return lambda **given: model_to_pretrain(PretrainSettings(**(needed | given)))


@pytest.fixture
def masked(tmp_path: Path) -> str:
    """A pre-trained model's folder."""
    folder = str(tmp_path / "masked")
    config = Swinv2Config(**FIELDS, encoder_stride=4, norm_targets=9)
    peers.draw_weights(Swinv2ForMaskedImageModeling(config)).save_pretrained(folder)
    return folder


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    """A folder of a classifier of four classes."""
    folder = str(tmp_path / "classifier")
    peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**FIELDS, num_labels=4))).save_pretrained(folder)
    return folder


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    # A training before may have sent this package's messages elsewhere.
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    caplog.set_level(logging.WARNING, "swinv2")
    return caplog


def stored(folder: str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "model.safetensors")


class TestNew:
    def test_a_size_of_the_paper(self, finetune: Any) -> None:
        model = finetune(model="tiny", image_size=[64, 32], window_size=4, drop_path_rate=0.3)
        # The network's own number, and a classifier of three classes.
        assert sum(parameter.numel() for parameter in model.parameters()) == 27_578_154 + 3 * 768 + 3
        assert (model.config.window_size, model.config.drop_path_rate) == (4, 0.3)
        assert [stage.grid for stage in model.config.stages()] == [(16, 8), (8, 4), (4, 2), (2, 1)]
        assert model.config.id2label == {0: "cat", 1: "dog", 2: "newt"}
        assert model.config.label2id == {"cat": 0, "dog": 1, "newt": 2}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    @pytest.mark.parametrize("given", [FIELDS, json.dumps(FIELDS)], ids=["mapping", "text"])
    def test_fields(self, finetune: Any, given: Any) -> None:
        model = finetune(model="new", model_fields=given, image_mean=[0.5], image_std=[0.5])
        assert {name: getattr(model.config, name) for name in FIELDS} == FIELDS
        assert model(torch.zeros(2, 1, 32, 32)).logits.shape == (2, 3)

    def test_settings_are_above_fields(self, finetune: Any) -> None:
        model = finetune(model="new", model_fields=FIELDS, image_size=[16], window_size=2)
        assert (model.config.image_size, model.config.window_size) == (16, 2)

    @pytest.mark.parametrize(("patch", "stride"), [(2, 4), ([2, 4], [4, 8])], ids=str)
    def test_what_a_token_draws(self, pretrain: Any, patch: Any, stride: Any) -> None:
        model = pretrain(model="new", model_fields=FIELDS | {"patch_size": patch}, norm_targets=5)
        assert (model.config.encoder_stride, model.config.norm_targets) == (stride, 5)
        assert model.swinv2.embeddings.mask_token is not None

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"model_fields": "{"}, "--model-fields is no JSON"),
            ({"model_fields": "[1]"}, r"--model-fields is \[1\]; expected an object"),
            ({"model_fields": {"embed_dims": 8}}, "--model-fields are not valid: .* did you mean 'embed_dim'"),
            ({"model_fields": {"depths": "many"}}, "--model-fields are not valid: depths is 'many'"),
            ({"model_fields": {"num_channels": 4}}, "num_channels 4, but --image-mean makes it 3"),
            ({"image_size": [1]}, "--model-fields are not valid: image_size 1"),
            ({"head_map": "rows.txt"}, "rows.txt"),
            ({"frozen_stages": 4}, "the number of frozen stages is 4; expected 0 to 3"),
        ],
    )
    def test_refusals(self, finetune: Any, given: dict[str, Any], sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            finetune(**({"model": "new", "model_fields": FIELDS} | given))

    def test_normalisation_of_a_new_model(self, needed: dict[str, Any]) -> None:
        settings = FinetuneSettings(**needed, model="new", model_fields=FIELDS)
        model_to_finetune(settings, NAMES)
        assert (settings.image_mean, settings.image_std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def test_half_a_normalisation(self, finetune: Any) -> None:
        with pytest.raises(UsageError, match="--image-mean and --image-std belong together"):
            finetune(model="new", model_fields=FIELDS, image_mean=[0.5])

    def test_targets_said_twice(self, pretrain: Any) -> None:
        with pytest.raises(UsageError, match="norm_targets 9, but --norm-targets makes it 47"):
            pretrain(model="new", model_fields=FIELDS | {"norm_targets": 9})


class TestLoaded:
    def test_a_pretrained_encoder_bit_for_bit(
        self, finetune: Any, masked: str, warnings_of: pytest.LogCaptureFixture
    ) -> None:
        model, before = finetune(model=masked), stored(masked)
        after = model.state_dict()
        shared = {name for name in after if not name.startswith("classifier.")}
        assert shared == {name for name in before if not name.startswith("decoder.")} - {"swinv2.embeddings.mask_token"}
        assert all(torch.equal(after[name], before[name]) for name in shared)
        assert "with random weights: the classifier, for the classes of the data" in warnings_of.text
        # Fresh as Swinv2PreTrainedModel says: normal with a deviation of 0.02, and no bias.
        assert 0.01 < model.classifier.weight.std() < 0.03
        assert not model.classifier.bias.any()

    def test_pretraining_resumes(self, pretrain: Any, masked: str, warnings_of: pytest.LogCaptureFixture) -> None:
        model, before = pretrain(model=masked, norm_targets=5), stored(masked)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert model.config.norm_targets == 5
        assert "random weights" not in warnings_of.text

    def test_other_classes(self, finetune: Any, classifier: str, warnings_of: pytest.LogCaptureFixture) -> None:
        model = finetune(model=classifier)
        assert model(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 3)
        assert "with random weights: the classifier" in warnings_of.text

    def test_a_run_that_resumes_loads_its_own_classifier(
        self, finetune: Any, classifier: str, warnings_of: pytest.LogCaptureFixture
    ) -> None:
        finetune(model=classifier, resume_from_checkpoint="runs/checkpoint-5")
        assert "random weights" not in warnings_of.text

    def test_as_many_classes(self, finetune: Any, classifier: str, warnings_of: pytest.LogCaptureFixture) -> None:
        model = finetune(("a", "b", "c", "d"), model=classifier, drop_path_rate=0.0)
        assert torch.equal(model.classifier.weight, stored(classifier)["classifier.weight"])
        assert model.config.drop_path_rate == 0.0
        assert "random weights" not in warnings_of.text
        assert "numbers instead of names; its classifier is kept in their order: 0 becomes 'a'" in warnings_of.text

    @pytest.mark.parametrize(
        ("old", "rows"),
        [
            (("cat", "dog", "newt"), (0, 1, 2)),
            (("newt", "cat", "dog"), (1, 2, 0)),
            (("dog", "owl", "cat"), (2, 0, None)),
            (("ape", "bee", "eel"), (None, None, None)),
        ],
    )
    def test_the_classifier_keeps_classes_by_name(
        self,
        finetune: Any,
        tmp_path: Path,
        warnings_of: pytest.LogCaptureFixture,
        old: tuple[str, ...],
        rows: tuple[int | None, ...],
    ) -> None:
        config = Swinv2Config(**FIELDS, id2label=dict(enumerate(old)), label2id={})
        peers.draw_weights(Swinv2ForImageClassification(config)).save_pretrained(tmp_path / "named")
        model, before = finetune(model=str(tmp_path / "named")), stored(str(tmp_path / "named"))
        for index, row in enumerate(rows):
            if row is None:
                assert not (model.classifier.weight[index] == before["classifier.weight"]).all(1).any()
                assert model.classifier.weight[index].abs().max() < 0.1
                assert model.classifier.bias[index] == 0
            else:
                assert torch.equal(model.classifier.weight[index], before["classifier.weight"][row])
                assert torch.equal(model.classifier.bias[index], before["classifier.bias"][row])
        new = [name for name, row in zip(NAMES, rows, strict=True) if row is None]
        assert (
            f"new classes with random weights, which the model does not have: {', '.join(new)}" in warnings_of.text
        ) == (bool(new))

    @pytest.mark.parametrize(
        ("given", "window", "pretrained"),
        [
            ({"image_size": [64], "window_size": 8}, (8, 8), [4, 4]),
            ({"image_size": [64], "window_size": 8, "stretch_bias": True}, (8, 8), [0, 0]),
            ({"image_size": [64, 48]}, (4, 4), [0, 0]),
            ({"window_size": 8}, (8, 8), [4, 4]),
            ({"image_size": [32, 64], "window_size": "4x8"}, (4, 8), [4, 4]),
            ({"window_size": "4,4"}, (4, 4), [0, 0]),
            ({}, (4, 4), [0, 0]),
        ],
        ids=str,
    )
    def test_windows(self, finetune: Any, masked: str, given: dict[str, Any], window: Any, pretrained: Any) -> None:
        model = finetune(model=masked, **given)
        assert list(model.config.pretrained_window_sizes) == pretrained
        assert [stage.window for stage in model.config.stages()] == [window, window]
        blocks = [block for stage in model.swinv2.encoder.layers for block in stage.blocks]
        assert {block.attention.self.geometry.window for block in blocks} == {window}
        height, width = (given.get("image_size", [32]) * 2)[:2]
        assert model(torch.zeros(1, 3, height, width)).logits.shape == (1, 3)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_its_own_normalisation(self, needed: dict[str, Any], tmp_path: Path, channels: int) -> None:
        model = Swinv2ForMaskedImageModeling(Swinv2Config(**FIELDS, encoder_stride=4, num_channels=channels))
        model.save_pretrained(tmp_path / "own")
        make_processor(Pixels((32, 32), [0.4] * channels, [0.2] * channels)).save_pretrained(tmp_path / "own")
        settings = FinetuneSettings(**needed, model=str(tmp_path / "own"))
        assert model_to_finetune(settings, NAMES).config.num_channels == channels
        assert (settings.image_mean, settings.image_std) == ([0.4] * channels, [0.2] * channels)

    @pytest.mark.parametrize("before", [None, "regression", "multi_label_classification"])
    def test_the_problem_of_the_data(self, finetune: Any, tmp_path: Path, before: str | None) -> None:
        config = Swinv2Config(**FIELDS, num_labels=3, problem_type=before)
        Swinv2ForImageClassification(config).save_pretrained(tmp_path / "old")
        assert finetune(model=str(tmp_path / "old")).config.problem_type == "single_label_classification"
        assert finetune(model=str(tmp_path / "old"), several=True).config.problem_type == "multi_label_classification"

    def test_one_channel_without_a_processor(self, finetune: Any, tmp_path: Path) -> None:
        model = Swinv2ForMaskedImageModeling(Swinv2Config(**FIELDS, encoder_stride=4, num_channels=1))
        model.save_pretrained(tmp_path / "bare")
        with pytest.raises(UsageError, match="takes 1 channels; --image-mean has 3"):
            finetune(model=str(tmp_path / "bare"))

    def test_the_bias_is_extrapolated_and_not_stretched(self, finetune: Any, masked: str) -> None:
        """Inside the old window, distances keep their bias; stretched, they do not, but the corners do."""
        changed = {"image_size": [64], "window_size": 8}
        tables = []
        for model in (
            finetune(model=masked),
            finetune(model=masked, **changed),
            finetune(model=masked, **changed, stretch_bias=True),
        ):
            attention = model.swinv2.encoder.layers[0].blocks[0].attention.self
            geometry = attention.geometry
            bias = attention.continuous_position_bias_mlp
            tables.append(bias(torch.empty(0), "eager", geometry.window, geometry.pretrained_window).detach())
        old, kept, stretched = tables
        torch.testing.assert_close(kept[:, 4:11, 4:11], old)
        assert (stretched[:, 4:11, 4:11] - old).abs().max() > 0.01
        torch.testing.assert_close(stretched[:, ::14, ::14], old[:, ::6, ::6])

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"image_mean": [0.5], "image_std": [0.5]}, "takes 3 channels; --image-mean has 1"),
            ({"model_fields": {"window_size": 8}}, "give --window-size for an existing one"),
            ({"model_fields": {"image_size": 64}}, "give --image-size for an existing one"),
            ({"model_fields": {"embed_dim": 16}}, "no fitting weights for .* do not match"),
            ({"image_size": [1]}, "--image-size or --window-size is impossible: image_size 1 is smaller"),
            ({"window_size": 0}, "--window-size is 0; expected tokens such as 8"),
            ({"window_size": "8,8,4"}, "impossible: window_size is .* one for each of the 2 stages"),
            ({"model": "no/such folder"}, "there is no folder"),
        ],
    )
    def test_refusals(self, finetune: Any, masked: str, given: dict[str, Any], sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            finetune(**({"model": masked} | given))

    def test_damaged_weights(self, finetune: Any, masked: str) -> None:
        file = Path(masked) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(UsageError, match="cannot be loaded"):
            finetune(model=masked)

    def test_missing_weights(self, finetune: Any, masked: str) -> None:
        (Path(masked) / "model.safetensors").unlink()
        with pytest.raises(UsageError, match="cannot be loaded"):
            finetune(model=masked)


class TestHeadMap:
    @pytest.fixture
    def table(self, tmp_path: Path) -> Any:
        def write(text: str) -> str:
            (tmp_path / "rows.txt").write_text(text)
            return str(tmp_path / "rows.txt")

        return write

    def test_rows_of_the_old_classifier(self, finetune: Any, classifier: str, table: Any) -> None:
        model, before = finetune(model=classifier, head_map=table("3\n0\n3\n")), stored(classifier)
        assert torch.equal(model.classifier.weight, before["classifier.weight"][[3, 0, 3]])
        assert torch.equal(model.classifier.bias, before["classifier.bias"][[3, 0, 3]])
        assert all(parameter.requires_grad for parameter in model.classifier.parameters())

    def test_rows_by_the_names_of_classes(
        self, finetune: Any, classifier: str, table: Any, warnings_of: pytest.LogCaptureFixture
    ) -> None:
        rows = table("1 newt\n3 fire ant\n0 dog\n2 cat\n")
        model, before = finetune(("cat", "fire ant", "newt"), model=classifier, head_map=rows), stored(classifier)
        assert torch.equal(model.classifier.weight, before["classifier.weight"][[2, 3, 1]])
        assert warnings_of.text.count("names no classes") == 0
        finetune(model=classifier, head_map=table("0\n1\n2\n"))
        assert "names no classes; its lines are those of 'cat' to 'newt' in this order" in warnings_of.text

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("0 cat\n1 newt\n", "has no line with a number and the class 'dog'"),
            ("0\n1\n", "has 2 lines; expected one for each of the 3 classes"),
            ("0\n1\n4\n", "has classes 0 to 4; .* has 4, counted from 0"),
            ("0\n1\n-1\n", "has classes -1 to 1"),
            ("cat\n1\n2\n", "cannot be read"),
            ("", "has 0 lines"),
        ],
    )
    def test_tables_that_do_not_fit(self, finetune: Any, classifier: str, table: Any, text: str, sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            finetune(model=classifier, head_map=table(text))

    def test_models_without_a_classifier(self, finetune: Any, masked: str, table: Any) -> None:
        for given in ({"model": masked}, {"model": "new", "model_fields": FIELDS}):
            with pytest.raises(UsageError, match=r"takes rows of a trained classifier; .* has none"):
                finetune(**given, head_map=table("0\n1\n1\n"))


class TestWhatLearns:
    def test_frozen_stages(self, finetune: Any, masked: str) -> None:
        model = finetune(model=masked, frozen_stages=2)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        starts = ("swinv2.embeddings.", "swinv2.encoder.layers.0.")
        assert frozen == {name for name, _ in model.named_parameters() if name.startswith(starts)}

    # peft asks transformers by an old name.
    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
    def test_lora(self, finetune: Any, masked: str) -> None:
        model = finetune(model=masked, lora=True, lora_rank=2)
        learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        low_rank = {name for name in learning if "lora_" in name}
        # Queries and values of three blocks, two matrices each.
        assert len(low_rank) == 12
        assert {min(learning[name].shape) for name in low_rank} == {2}
        assert {name.split(".")[2] for name in set(learning) - low_rank} == {"classifier"}
        # Fresh adapters change nothing.
        plain: nn.Module = finetune(model=masked)
        plain.classifier.load_state_dict(model.base_model.model.classifier.modules_to_save["default"].state_dict())
        images = peers.images((32, 32))
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(images).logits, plain.eval()(images).logits)
