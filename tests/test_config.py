"""The configuration: transformers' fields and files, and a sentence for everything impossible."""

import copy
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers.models.swinv2.configuration_swinv2 import Swinv2Config as TransformersConfig

from swinv2 import (
    Swinv2Backbone,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
)
from swinv2.errors import UsageError
from swinv2.predict.describe import describe


def plain(value: Any) -> Any:
    """Lists and tuples alike, as JSON has it."""
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TransformersConfig)])
def test_every_field_and_default_is_transformers(name: str) -> None:
    """Each field that transformers has, of its own or common to all models, has the same default here."""
    assert plain(getattr(Swinv2Config(), name)) == plain(getattr(TransformersConfig(), name))


@pytest.mark.parametrize(
    "name", ["num_layers", "hidden_size", "stage_names", "num_attention_heads", "num_hidden_layers", "num_labels"]
)
@pytest.mark.parametrize("fields", [{}, {"depths": [2, 2, 2], "num_heads": [3, 6, 12], "num_labels": 7}])
def test_derived_attributes_are_transformers(fields: dict[str, Any], name: str) -> None:
    """Attributes that follow from others, and other names for them."""
    assert plain(getattr(Swinv2Config(**fields), name)) == plain(getattr(TransformersConfig(**fields), name))


def test_other_names_for_fields() -> None:
    """`attribute_map` works for reading, for writing and in the constructor."""
    assert Swinv2Config.attribute_map == TransformersConfig.attribute_map
    config = Swinv2Config(num_attention_heads=[1, 2, 4, 8])
    assert config.num_heads == [1, 2, 4, 8]
    config.num_attention_heads = [3, 6, 12, 24]
    assert config.num_heads == [3, 6, 12, 24]


FOUR = "pretrained_window_sizes"
REFUSALS = [
    ("image_size", {"image_size": "large"}),
    ("image_size", {"image_size": 0}),
    ("image_size", {"image_size": -256}),
    ("image_size", {"image_size": 256.0}),
    ("image_size", {"image_size": True}),
    ("image_size", {"image_size": (1, 2, 3)}),
    ("image_size[1]", {"image_size": (256, "wide")}),
    ("patch_size", {"patch_size": 0}),
    ("num_channels", {"num_channels": 0}),
    ("embed_dim", {"embed_dim": 1.5}),
    ("embed_dim", {"embed_dim": -96}),
    ("depths", {"depths": 4}),
    ("depths", {"depths": "2262"}),
    ("depths[2]", {"depths": [2, 2, 0, 2]}),
    ("depths", {"depths": [], "num_heads": []}),
    ("num_heads", {"num_heads": 3}),
    ("num_heads[0]", {"num_heads": [0, 6, 12, 24]}),
    ("window_size", {"window_size": 0}),
    ("window_size", {"window_size": 7.5}),
    ("window_size", {"window_size": "8x16"}),
    ("window_size", {"window_size": True}),
    ("window_size", {"window_size": []}),
    ("window_size[0]", {"window_size": (0, 8)}),
    ("window_size[1]", {"window_size": [8, "16"]}),
    ("window_size[2]", {"window_size": [8, 8, 0, 8]}),
    ("window_size[3]", {"window_size": [8, 8, 8, (4, 4, 4)]}),
    ("window_size[1][0]", {"window_size": [8, (-4, 8), 8, 8]}),
    (FOUR, {FOUR: 12}),
    (f"{FOUR}[3]", {FOUR: [12, 12, 12, -6]}),
    (f"{FOUR}[0]", {FOUR: ["12", 12, 12, 6]}),
    ("mlp_ratio", {"mlp_ratio": 0}),
    ("mlp_ratio", {"mlp_ratio": "4"}),
    ("qkv_bias", {"qkv_bias": 1}),
    ("hidden_dropout_prob", {"hidden_dropout_prob": 1.0}),
    ("attention_probs_dropout_prob", {"attention_probs_dropout_prob": -0.1}),
    ("drop_path_rate", {"drop_path_rate": 1}),
    ("drop_path_rate", {"drop_path_rate": None}),
    ("hidden_act", {"hidden_act": "geluu"}),
    ("use_absolute_embeddings", {"use_absolute_embeddings": "yes"}),
    ("initializer_range", {"initializer_range": 0.0}),
    ("layer_norm_eps", {"layer_norm_eps": -1e-5}),
    ("encoder_stride", {"encoder_stride": 0}),
    ("encoder_stride", {"encoder_stride": (32, 32, 32)}),
    ("extra_norm_period", {"extra_norm_period": -1}),
    ("mask_padding", {"mask_padding": None}),
    ("num_layers", {"num_layers": 3}),
    ("hidden_size", {"hidden_size": 96}),
    ("out_features", {"out_features": ["stage5"]}),
    ("out_indices", {"out_indices": [7]}),
    ("windows_size", {"windows_size": 8}),
    ("ape", {"ape": True}),
]

CONTRADICTIONS = [
    ("image_size", {"image_size": 3}),
    ("patch_size", {"image_size": (256, 8), "patch_size": 16}),
    ("num_heads", {"num_heads": [3, 6, 12]}),
    ("num_heads[0]", {"num_heads": [5, 6, 12, 24]}),
    ("window_size", {"window_size": [8, 8, 8]}),
    ("window_size", {"window_size": [[8, 8], [4, 4]]}),
    (FOUR, {FOUR: [12, 12, 12]}),
    ("extra_norm_period", {"extra_norm_period": 7}),
]
ALL = REFUSALS + CONTRADICTIONS


@pytest.mark.parametrize(("name", "fields"), CONTRADICTIONS, ids=str)
def test_contradictions_are_refused_where_a_model_is_built(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """As in transformers they may be written, kept in a file and mended; models and programs get one sentence."""
    config = Swinv2Config(**fields)
    config.save_pretrained(tmp_path)
    read = Swinv2Config.from_pretrained(tmp_path)
    assert plain(read.to_dict()) == plain(config.to_dict())
    with pytest.raises(ValueError) as refusal:
        read.stages()
    message = str(refusal.value)
    assert name in message
    config.architectures = ["Swinv2Model"]
    config.save_pretrained(tmp_path)
    for build in (Swinv2Model, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling, Swinv2Backbone):
        with torch.device("meta"), pytest.raises(ValueError) as built:
            build(read)
        assert str(built.value) == message
    with pytest.raises(UsageError) as refused:
        describe(str(tmp_path))
    assert str(refused.value).endswith(message)
    for field in fields:
        setattr(read, field, getattr(Swinv2Config(), field))
    assert read.stages() == Swinv2Config().stages()


@pytest.mark.parametrize(("name", "fields"), REFUSALS, ids=lambda value: str(value))
def test_the_impossible_is_refused_by_name(name: str, fields: dict[str, Any]) -> None:
    """Every refusal is a ValueError that names the field."""
    with pytest.raises(ValueError) as refusal:
        Swinv2Config(**fields)
    assert name in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "fields"), [case for case in ALL if not case[0].startswith("out_")], ids=lambda value: str(value)
)
def test_a_refusal_is_a_sentence_with_what_was_given(name: str, fields: dict[str, Any]) -> None:
    """It says what was given (by its name if the name is wrong) and ends as sentences do."""
    with pytest.raises(ValueError) as refusal:
        Swinv2Config(**fields).checked()
    message = str(refusal.value)
    assert message.endswith((".", "?"))
    given = fields.get(name.partition("[")[0], "")
    known = {field.name for field in dataclasses.fields(Swinv2Config)}
    numbers = [item for item in plain([given]) if not isinstance(item, list)]
    assert name.partition("[")[0] not in known or "[" in name or all(str(item) in message for item in numbers)


def test_a_wrong_window_is_answered_with_all_that_it_may_be() -> None:
    """The sentence says how many there must be."""
    with pytest.raises(ValueError) as refusal:
        Swinv2Config(window_size=[8, 8, 4]).checked()
    assert str(refusal.value) == (
        "window_size is [8, 8, 4]; expected an integer or a pair (height, width) for all stages, or a list of such "
        "windows, one for each of the 4 stages."
    )


def test_an_unknown_field_is_answered_with_a_likely_one() -> None:
    """A slip of the pen is recognised."""
    with pytest.raises(ValueError, match="no field 'windows_size'; did you mean 'window_size'"):
        Swinv2Config(windows_size=8)


def test_a_later_change_is_checked_too() -> None:
    """A field set to something impossible after construction is refused where it is used."""
    config = Swinv2Config()
    config.window_size = 0
    with pytest.raises(ValueError, match="window_size is 0"):
        config.stages()


def test_what_a_file_holds_beyond_the_fields_is_kept_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Other tools leave notes in a config.json: reading one does not fail, and nothing is lost."""
    written = Swinv2Config(window_size=8).to_dict() | {"made_by": "somebody"}
    with caplog.at_level(logging.WARNING):
        config = Swinv2Config.from_dict(written)
    assert config.made_by == "somebody"
    assert config.window_size == 8
    assert "['made_by']" in caplog.text
    assert Swinv2Config.from_dict(config.to_dict()).made_by == "somebody"


def test_a_wrong_value_in_a_file_is_refused_too() -> None:
    """Leniency ends at the fields."""
    with pytest.raises(ValueError, match="window_size is 0"):
        Swinv2Config.from_dict(Swinv2Config().to_dict() | {"window_size": 0})


def test_published_configurations_are_read_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file of microsoft/swinv2-base-patch4-window12to16-192to256-22kto1k-ft, labels cut."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Swinv2ForImageClassification"],
                "attention_probs_dropout_prob": 0.0,
                "depths": [2, 2, 18, 2],
                "drop_path_rate": 0.1,
                "embed_dim": 128,
                "encoder_stride": 32,
                "hidden_act": "gelu",
                "hidden_dropout_prob": 0.0,
                "hidden_size": 1024,
                "id2label": {"0": "tench", "1": "goldfish"},
                "image_size": 256,
                "initializer_range": 0.02,
                "label2id": {"goldfish": 1, "tench": 0},
                "layer_norm_eps": 1e-05,
                "mlp_ratio": 4.0,
                "model_type": "swinv2",
                "num_channels": 3,
                "num_heads": [4, 8, 16, 32],
                "num_layers": 4,
                "patch_size": 4,
                "path_norm": True,
                "pretrained_window_sizes": [12, 12, 12, 6],
                "qkv_bias": True,
                "torch_dtype": "float32",
                "transformers_version": "4.21.0.dev0",
                "use_absolute_embeddings": False,
                "window_size": 16,
            }
        )
    )
    with caplog.at_level(logging.WARNING):
        config = Swinv2Config.from_pretrained(tmp_path)
    assert caplog.text == ""
    assert config.num_labels == 2
    assert [stage.window for stage in config.stages()] == [(16, 16)] * 3 + [(8, 8)]
    assert [stage.pretrained_window for stage in config.stages()] == [(12, 12)] * 3 + [(6, 6)]


ROUND_TRIPS = [
    {},
    {"image_size": [96, 128], "patch_size": [4, 2], "encoder_stride": [32, 16]},
    {"depths": [2, 6], "num_heads": [3, 6], "extra_norm_period": 6, "mask_padding": True},
    {"pretrained_window_sizes": [[4, 8], 8, 8, 4], "num_labels": 3, "out_features": ["stem", "stage4"]},
    {"window_size": [4, 7]},
    {"window_size": [[4, 7], 7, 7, 4], "image_size": [128, 224]},
    {"window_size": [[8, 8], [4, 4]], "depths": [2, 2], "num_heads": [3, 6]},
]


@pytest.mark.parametrize("fields", ROUND_TRIPS, ids=str)
def test_files_are_read_as_they_were_written(fields: dict[str, Any], tmp_path: Path) -> None:
    """Writing and reading changes nothing."""
    config = Swinv2Config(**fields)
    config.save_pretrained(tmp_path)
    again = Swinv2Config.from_pretrained(tmp_path)
    assert plain(again.to_dict()) == plain(config.to_dict())
    assert again.stages() == config.stages()
    assert again.out_features == config.out_features
    assert copy.deepcopy(config).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_size": 256, "window_size": 16, "pretrained_window_sizes": [12, 12, 12, 6]},
        {"depths": [2, 2, 2], "num_heads": [3, 6, 12], "num_labels": 5, "out_indices": [1, 3]},
    ],
    ids=str,
)
def test_files_go_to_transformers_and_back(
    fields: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of transformers is read here, and one from here there, field by field and without a warning."""
    names = [field.name for field in dataclasses.fields(TransformersConfig)]
    names += ["num_layers", "hidden_size", "out_features", "out_indices", "num_labels", "id2label"]
    theirs, ours = TransformersConfig(**fields), Swinv2Config(**fields)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    with caplog.at_level(logging.WARNING):
        ours_read = Swinv2Config.from_pretrained(tmp_path / "theirs")
    assert caplog.text == ""
    theirs_read = TransformersConfig.from_pretrained(tmp_path / "ours")
    # Theirs has four zeros whatever the number of stages, ours one for each stage.
    assert plain(ours_read.pretrained_window_sizes) == plain(theirs.pretrained_window_sizes)[: ours.num_layers]
    skipped = {"transformers_version", "architectures", "pretrained_window_sizes"}
    for name in names:
        if name not in skipped and hasattr(theirs, name):
            assert plain(getattr(ours_read, name)) == plain(getattr(theirs, name)), name
            assert plain(getattr(theirs_read, name)) == plain(getattr(ours, name)), name


def test_maps_of_a_backbone_by_name_or_index() -> None:
    """`out_features` and `out_indices` say the same; the last stage is the default."""
    assert Swinv2Config().out_features == ["stage4"]
    config = Swinv2Config(out_indices=[0, 2])
    assert config.out_features == ["stem", "stage2"]
    config = Swinv2Config(out_features=["stage1", "stage4"])
    assert list(config.out_indices) == [1, 4]


def test_no_argument_is_changed_or_kept() -> None:
    """Lists that were passed belong to the caller: neither side sees the other's later changes."""
    fields = {
        "image_size": [64, 64],
        "depths": [2, 2],
        "num_heads": [3, 6],
        "pretrained_window_sizes": [4, 4],
    }
    before = copy.deepcopy(fields)
    config = Swinv2Config(**fields)
    config.depths[0] = 5
    config.num_heads[0] = 1
    config.pretrained_window_sizes[0] = 9
    assert fields == before


def test_stages_of_a_square_image() -> None:
    """Windows are clipped to the map of the configured image, and where one covers it there is no shift."""
    stages = Swinv2Config(image_size=256, window_size=16).stages()
    assert [stage.grid for stage in stages] == [(64, 64), (32, 32), (16, 16), (8, 8)]
    assert [stage.window for stage in stages] == [(16, 16), (16, 16), (16, 16), (8, 8)]
    assert [stage.shift for stage in stages] == [(8, 8), (8, 8), (0, 0), (0, 0)]
    assert [stage.dim for stage in stages] == [96, 192, 384, 768]
    assert [stage.merges for stage in stages] == [True, True, True, False]


WINDOWS = [
    (8, 4, 8, [(8, 8)] * 4),
    ((8, 8), 4, 8, [(8, 8)] * 4),
    ([8, 8, 8, 8], 4, 8, [(8, 8)] * 4),
    ([8], 1, 8, [(8, 8)]),
    ((4, 8), 4, [4, 8], [(4, 8)] * 4),
    ([(4, 8)] * 4, 4, [4, 8], [(4, 8)] * 4),
    ((8, 8, 8, 4), 4, [8, 8, 8, 4], [(8, 8), (8, 8), (8, 8), (4, 4)]),
    ([8, (4, 8), [2, 2], 4], 4, [8, [4, 8], 2, 4], [(8, 8), (4, 8), (2, 2), (4, 4)]),
    ([4, 8], 2, [4, 8], [(4, 8)] * 2),
    ([[4, 4], [8, 8]], 2, [[4, 4], [8, 8]], [(4, 4), (8, 8)]),
    ([4, [8, 8]], 2, [[4, 4], [8, 8]], [(4, 4), (8, 8)]),
    ([4, [8, 2]], 2, [[4, 4], [8, 2]], [(4, 4), (8, 2)]),
]


@pytest.mark.parametrize(("given", "num_stages", "kept", "windows"), WINDOWS, ids=str)
def test_notations_of_windows(given: Any, num_stages: int, kept: Any, windows: list[tuple[int, int]]) -> None:
    """One for all stages or one for each; Stored in the shortest notation, two integers always a pair."""
    stages = {"depths": [2] * num_stages, "num_heads": [3] * num_stages}
    config = Swinv2Config(image_size=512, window_size=given, **stages)
    assert config.window_size == kept
    assert list(config.stage_windows) == windows
    assert [stage.window for stage in config.stages()] == windows
    read = Swinv2Config.from_dict(Swinv2Config(image_size=512, **stages).to_dict(), window_size=given)
    assert read.window_size == kept
    assert Swinv2Config(**stages).resized(512, given).window_size == kept


def test_stages_with_windows_of_their_own() -> None:
    """Each is clipped to its map and shifted by half, axis by axis."""
    stages = Swinv2Config(image_size=(128, 256), window_size=[(4, 16), (16, 5), (8, 4), 8]).stages()
    assert [stage.grid for stage in stages] == [(32, 64), (16, 32), (8, 16), (4, 8)]
    assert [stage.window for stage in stages] == [(4, 16), (16, 5), (8, 4), (4, 8)]
    assert [stage.shift for stage in stages] == [(2, 8), (0, 2), (0, 2), (0, 0)]


def test_a_window_of_another_shape_keeps_what_was_learned() -> None:
    """Stages whose window changes on an axis remember the old one, on both."""
    config = Swinv2Config(image_size=256, window_size=8)
    wide = config.resized(256, (8, 16))
    assert wide.pretrained_window_sizes == [8, 8, 8, 0]
    by_stage = wide.resized(256, [16, 16, (4, 8), 8])
    assert by_stage.pretrained_window_sizes == [8, 8, 8, 0]
    assert config.resized(256, [8, 8, 16, 8]).pretrained_window_sizes == [0, 0, 8, 0]
    learned = Swinv2Config(image_size=256, window_size=[(4, 8), 8, 8, 8]).resized(256, 16)
    assert learned.pretrained_window_sizes == [[4, 8], 8, 8, 0]
    assert by_stage.resized(256, (8, 16), stretch=True).pretrained_window_sizes == [0, 0, 0, 0]


def test_transformers_refuses_windows_that_it_does_not_have(tmp_path: Path) -> None:
    """A file with windows of another form is refused there by the field's name, never read as something else."""
    for window in ([4, 8], [8, 8, 8, 4]):
        Swinv2Config(window_size=window).save_pretrained(tmp_path)
        with pytest.raises(StrictDataclassFieldValidationError, match="Field 'window_size' expected int"):
            TransformersConfig.from_pretrained(tmp_path)
    Swinv2Config(window_size=[[8, 8]] * 4).save_pretrained(tmp_path)
    assert TransformersConfig.from_pretrained(tmp_path).window_size == 8


def test_stages_of_a_rectangular_image() -> None:
    """Windows and shifts are clipped on each axis for itself, as timm does."""
    stages = Swinv2Config(image_size=(128, 256), window_size=8).stages()
    assert [stage.grid for stage in stages] == [(32, 64), (16, 32), (8, 16), (4, 8)]
    assert [stage.window for stage in stages] == [(8, 8), (8, 8), (8, 8), (4, 8)]
    assert [stage.shift for stage in stages] == [(4, 4), (4, 4), (0, 4), (0, 0)]


def test_maps_are_rounded_down_but_never_to_nothing() -> None:
    """As transformers rounds for odd maps; where transformers refuses a small image, a map keeps one token."""
    assert [stage.grid for stage in Swinv2Config(image_size=100).stages()] == [(25, 25), (12, 12), (6, 6), (3, 3)]
    assert [stage.window for stage in Swinv2Config(image_size=16).stages()] == [(4, 4), (2, 2), (1, 1), (1, 1)]


def test_extra_norms_are_counted_by_stage() -> None:
    """With a period of 6, blocks 6, 12 and 18 of the long stage, and none of the short ones."""
    stages = Swinv2Config(depths=[2, 2, 18, 2], extra_norm_period=6).stages()
    assert [(stage.name, stage.depth) for stage in stages] == [
        ("stage1", 2),
        ("stage2", 2),
        ("stage3", 18),
        ("stage4", 2),
    ]
    assert [sum(stage.extra_norms) for stage in stages] == [0, 0, 3, 0]
    assert [index for index, extra in enumerate(stages[2].extra_norms) if extra] == [5, 11, 17]


def test_drop_path_rises_linearly() -> None:
    """From 0 at the first block to the rate at the last, over all stages."""
    rates = [rate for stage in Swinv2Config(drop_path_rate=0.3).stages() for rate in stage.drop_path_rates]
    assert rates == pytest.approx([0.3 * index / 11 for index in range(12)])
    assert Swinv2Config(depths=[1], num_heads=[3], drop_path_rate=0.3).stages()[0].drop_path_rates == (0.0,)
