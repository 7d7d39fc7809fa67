"""The outputs of the models, in transformers' format."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput, MaskedImageModelingOutput


@dataclass
class Swinv2ModelOutput(BaseModelOutputWithPooling):
    """The output of `Swinv2Model`.

    Attributes:
        last_hidden_state: Tokens (B, patches of the last map, hidden_size) after the last norm.
        pooler_output: The mean of these tokens (B, hidden_size), if the model pools.
        hidden_states: Tokens (B, patches, channels) after the embedding and after each stage, merging included.
        attentions: Attention weights (B * windows, heads, T, T) of the last block of each stage.
        reshaped_hidden_states: `hidden_states` as maps (B, channels, H, W).
    """

    reshaped_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class Swinv2ImageClassifierOutput(ImageClassifierOutput):
    """The output of `Swinv2ForImageClassification`.

    Attributes:
        loss: Scalar, if labels were given.
        logits: Scores (B, num_labels) before the softmax.
        hidden_states, attentions, reshaped_hidden_states: See `Swinv2ModelOutput`.
    """

    reshaped_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class Swinv2MaskedImageModelingOutput(MaskedImageModelingOutput):
    """The output of `Swinv2ForMaskedImageModeling`.

    Attributes:
        loss: Scalar, if a mask was given: the mean absolute error of the masked pixels.
        reconstruction: Reconstructed images, of the size of the input.
        hidden_states, attentions, reshaped_hidden_states: See `Swinv2ModelOutput`.
    """

    reshaped_hidden_states: tuple[Tensor, ...] | None = None
