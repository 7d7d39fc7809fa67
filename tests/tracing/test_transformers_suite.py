"""transformers' own common tests, over this package's classes.

They are read from a folder that the environment variable TRANSFORMERS_TESTS names: `tests` of a checkout of
transformers at the installed version, or of its source distribution, which is unpacked where `pip download
--no-deps --no-binary :all: transformers==VERSION` puts it. Nothing is copied from there. Tests that need more than the
folder has are left out.
"""

import importlib
import importlib.util
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers

import swinv2 as library

FOLDER = os.environ.get("TRANSFORMERS_TESTS")
if not FOLDER:
    pytest.skip("TRANSFORMERS_TESTS names no folder with transformers' tests", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")
MODELS = (
    library.Swinv2Model,
    library.Swinv2ForImageClassification,
    library.Swinv2ForMaskedImageModeling,
    library.Swinv2Backbone,
)


def load(module: str, **stand_ins: Any) -> Any:
    """A module of the folder; what stands in for it where it is not there, as in a source distribution."""
    package, _, name = f"transformers_tests.{module}".rpartition(".")
    path = Path(str(FOLDER), *package.split(".")[1:])
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(path)]
    if stand_ins and not (path / f"{name}.py").exists():
        sys.modules[f"{package}.{name}"] = types.ModuleType(name)
        vars(sys.modules[f"{package}.{name}"]).update(stand_ins)
    return importlib.import_module(f"{package}.{name}")


load("exporters.test_export", ExportTesterMixin=object)
load("generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
load(
    "utils.test_configuration_utils",
    config_common_kwargs={"return_dict": False, "output_attentions": True, "problem_type": "regression"},
)
with patch("transformers.utils.direct_transformers_import", return_value=transformers):
    common: Any = load("test_modeling_common")
    backbones: Any = load("test_backbone_common")
    configurations: Any = load("test_configuration_common")


class SmallModel:
    """What the common tests ask of a model: a small configuration and inputs."""

    batch_size, image_size, patch_size, num_channels, type_sequence_label_size = 3, 32, 2, 3, 10
    seq_length, num_masks, is_training = 256, 10, True

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> Any:
        """Three stages, small windows, every kind of block."""
        return library.Swinv2Config(
            image_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=16,
            depths=[1, 2, 1],
            num_heads=[2, 2, 4],
            window_size=2,
            mlp_ratio=2.0,
            encoder_stride=8,
            out_features=["stage1", "stage2"],
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        """The configuration and images."""
        return self.get_config(), {"pixel_values": torch.rand(self.batch_size, self.num_channels, 32, 32)}


class TestModels(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = MODELS
    test_resize_embeddings = False

    def setUp(self) -> None:
        if "eager_matches_sdpa" in self._testMethodName:  # with a mask, and the model without a head has no mask token
            self.all_model_classes = MODELS[1:]
        self.model_tester = SmallModel(self)
        self.config_tester = configurations.ConfigTester(
            self,
            config_class=library.Swinv2Config,
            embed_dim=37,
            has_text_modality=False,
            common_properties=["image_size", "patch_size", "num_channels"],
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    @unittest.skip("there are no token embeddings")
    def test_inputs_embeds(self) -> None: ...

    @unittest.skip("there is no chunking of the MLP, nor is there in transformers")
    def test_feed_forward_chunking(self) -> None: ...

    def test_model_get_set_embeddings(self) -> None:
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert isinstance(model.get_input_embeddings(), torch.nn.Module)
            assert model.get_output_embeddings() is None

    def _outputs(self, **asked: bool) -> list[Any]:
        """Of every class: asked for in the call, and in the configuration."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        found = []
        for model_class in self.all_model_classes:
            by_call = model_class._from_config(config, attn_implementation="eager").eval()
            by_config = model_class._from_config(config, attn_implementation="eager").eval()
            for name, value in asked.items():
                setattr(by_config.config, name, value)
            with torch.no_grad():
                found += [by_call(**inputs, **asked), by_config(**inputs)]
        return found

    def test_attention_outputs(self) -> None:
        for outputs in self._outputs(output_attentions=True):
            assert [tuple(each.shape[1:]) for each in outputs.attentions] == [(heads, 4, 4) for heads in (2, 2, 4)]

    def test_hidden_states_output(self) -> None:
        for outputs in self._outputs(output_hidden_states=True):
            assert len(outputs.hidden_states) == 4
            assert tuple(outputs.hidden_states[0].shape) == (3, 256, 16)


class TestBackbone(unittest.TestCase, backbones.BackboneTesterMixin):
    all_model_classes = MODELS[3:]
    config_class = library.Swinv2Config

    def setUp(self) -> None:
        self.model_tester = SmallModel(self)
