"""What a model shows of its way: hidden states, maps and attentions lie on the way to the answer.

A gradient with respect to one of them is then that of the answer, which Grad-CAM and attention rollout need.
"""

from typing import Any

import pytest
import torch
from transformers.models.swinv2 import modeling_swinv2 as theirs

import peers
from swinv2 import Swinv2Backbone, Swinv2Config, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling, Swinv2Model

FIELDS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "encoder_stride": 4,
    "drop_path_rate": 0.0,
    "out_features": ["stem", "stage2"],
}
MODELS = [Swinv2Model, Swinv2ForImageClassification, Swinv2ForMaskedImageModeling, Swinv2Backbone]


def answer(outputs: Any) -> torch.Tensor:
    """What each kind of model is asked for; of a backbone, its last map."""
    for name in ("logits", "reconstruction", "last_hidden_state"):
        if name in outputs:
            return outputs[name].square().sum()
    return outputs.feature_maps[-1].square().sum()


def gradients(model: torch.nn.Module, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Of the answer with respect to everything that is shown."""
    outputs = model(images, output_hidden_states=True, output_attentions=True)
    names = [
        name for name in ("hidden_states", "reshaped_hidden_states", "attentions", "feature_maps") if name in outputs
    ]
    for name in names:
        for tensor in outputs[name]:
            tensor.retain_grad()
    answer(outputs).backward()
    return {name: [tensor.grad for tensor in outputs[name]] for name in names}


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("size", [(32, 32), (27, 50)], ids=str)
def test_everything_that_is_shown_lies_on_the_way_to_the_answer(model_class: type, size: tuple[int, int]) -> None:
    """And tokens and maps, which are the same numbers, have the same gradients."""
    torch.manual_seed(0)
    model = peers.draw_weights(model_class(Swinv2Config(**FIELDS)))
    found = gradients(model, torch.randn(2, 3, *size))
    for name, tensors in found.items():
        assert all(tensor is not None and tensor.abs().sum() > 0 for tensor in tensors), name
    if "reshaped_hidden_states" in found:
        for tokens, reshaped in zip(found["hidden_states"], found["reshaped_hidden_states"], strict=True):
            torch.testing.assert_close(tokens, reshaped.flatten(2).transpose(1, 2), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["Swinv2Model", "Swinv2ForImageClassification", "Swinv2Backbone"])
def test_the_gradients_are_those_of_transformers(name: str) -> None:
    """Of tokens and attention weights; transformers' maps lie beside the way."""
    torch.manual_seed(0)
    ours = next(each for each in MODELS if each.__name__ == name)(Swinv2Config(**FIELDS)).eval()
    peers.draw_weights(ours)
    other = getattr(theirs, name)(theirs.Swinv2Config(**FIELDS)).eval()
    other.load_state_dict(ours.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 32).double()
    found, expected = gradients(ours.double(), images), gradients(other.double(), images)
    for shown in ("hidden_states", "attentions"):
        for mine, other_one in zip(found[shown], expected[shown], strict=True):
            torch.testing.assert_close(mine, other_one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_class", MODELS)
def test_asking_changes_no_answer(model_class: type) -> None:
    """The views are the map."""
    torch.manual_seed(0)
    model = peers.draw_weights(model_class(Swinv2Config(**FIELDS))).eval()
    images = torch.randn(2, 3, 27, 50)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[0], model(images, output_hidden_states=True)[0], rtol=0, atol=0)
