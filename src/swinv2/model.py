"""The network without a head, and the base class of all models: flags, initialisation, change of image size.

In: images (B, channels, height, width). Out: transformers' outputs. This module follows transformers' conventions and
composes the layers. It does not know about tasks.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from swinv2.config import Swinv2Config
from swinv2.layers.attention import CosineWindowAttention
from swinv2.layers.block import PostNorm
from swinv2.layers.patches import Embeddings, resample_positions
from swinv2.layers.stage import Encoder, stage_attentions, views_of
from swinv2.lengths import Windows
from swinv2.ops.backends import (
    EAGER,
    SDPA,
    TRITON,
    Call,
    choose_backend,
    explain_backend,
    is_interpreted,
    refuse_machine,
)
from swinv2.ops.execution import execution
from swinv2.outputs import Swinv2ModelOutput

logger = logging.get_logger(__name__)


class Swinv2PreTrainedModel(PreTrainedModel):
    """The base class of all models: flags, initialisation, change of image size.

    Initial values of the parameters (source: microsoft/Swin-Transformer, swin_transformer_v2.py; std is
    `initializer_range`):

    ==================================================  ===================================================
    parameter                                           initial value
    ==================================================  ===================================================
    weights of linear layers, position bias included    normal, std 0.02, truncated at +-2
    biases of linear layers                             0
    norms of embedding, merging, maps, the last one     weight 1, bias 0
    the two post-norms of every block                   weight 0, bias 0: a new block is the identity
    the extra norms on the main path                    weight 1, bias 0: zero would cut the main path
    patch projection, mask decoder (convolutions)       torch's default (Kaiming uniform)
    logit_scale                                         log 10
    mask token, absolute position embeddings            normal, std 0.02, truncated at +-2
    ==================================================  ===================================================
    """

    config_class = Swinv2Config
    config: Swinv2Config
    base_model_prefix = "swinv2"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    # The loss is a mean over the batch, so Trainer itself must divide it by the number of accumulation steps.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _input_embed_layer = "patch_embeddings"
    _supports_sdpa = True
    _no_split_modules = ["SwinTransformerBlock"]

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """The attention backend that the model requests; see `swinv2.ops.backends`.

        Args:
            requested_attention: The user's choice. None means "triton" if this machine has a GPU that can run it, and
                "sdpa" otherwise; maps on other devices than the GPU then use "sdpa".
            is_init_check: See transformers.

        Raises:
            ValueError: "triton" is requested and cannot run here, or no backend has that name.
        """
        if requested_attention is None and refuse_machine() is None and not is_interpreted():
            return TRITON
        if requested_attention != TRITON:
            return super().get_correct_attn_implementation(requested_attention, is_init_check)
        reason = refuse_machine()
        if reason is not None:
            raise ValueError(
                f'attn_implementation is "triton", which cannot run here: {reason}; leave it out, or ask for "sdpa".'
            )
        return requested_attention

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Sets the initial values of a module's parameters."""
        # transformers calls this only for modules that own a parameter, so a block cannot set its norms.
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(math.prod(module.weight.shape[1:]))
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, PostNorm):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, CosineWindowAttention):
            init.constant_(module.logit_scale, math.log(10))
        elif isinstance(module, Embeddings):
            for parameter in (module.mask_token, module.position_embeddings):
                if parameter is not None:
                    init.trunc_normal_(parameter, std=std)

    def set_image_size(
        self, image_size: int | tuple[int, int], window_size: Windows | None = None, stretch: bool = False
    ) -> None:
        """Adapts the model to another image size, and to another window if one is given.

        If a stage's window changes, its position bias is extrapolated; `config.pretrained_window_sizes` keeps the
        window in which it was learned. Absolute position embeddings are resampled to the new grid and become a new
        parameter, which an existing optimiser does not contain. For a backbone in a segmenter or detector use
        `swinv2.dense.set_image_size`: the model around it has a configuration of its own, which is saved.

        Args:
            image_size: New image size in pixels, one length or (height, width).
            window_size: New window in tokens, one for all stages or one for each; None keeps the current windows.
            stretch: Stretch the learned position bias over the new window instead of extrapolating it.

        Raises:
            ValueError: The size or the window is impossible; the model is unchanged.

        Source:
            Liu et al., Swin Transformer V2, section 3.3 and table 1.
        """
        self._adopt(self.config.resized(image_size, window_size, stretch))

    def _adopt(self, candidate: Swinv2Config) -> None:
        """Takes another configuration, of the same weights for inputs of another size."""
        old, grid = self.config, candidate.patch_grid[-2:]
        # The configuration is replaced, not changed: other models may share the old object.
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and module.config is old:
                module.config = candidate
            if isinstance(module, Encoder):
                module.replan(candidate)
            elif isinstance(module, Embeddings):
                if module.position_embeddings is not None:
                    positions = resample_positions(module.position_embeddings.data, module.grid, grid)
                    module.position_embeddings = nn.Parameter(positions, module.position_embeddings.requires_grad)
                module.grid = grid

    def _check_input(self, pixel_values: Tensor | None) -> Tensor:
        """Raises an error unless the model's input is a tensor of images."""
        return self._check_pixels(pixel_values, "image", "(batch, channels, height, width)")

    def _check_pixels(self, pixel_values: Tensor | None, what: str, shape: str) -> Tensor:
        """Raises an error unless the model's input is a tensor of this shape, with the channels of the configuration.

        Args:
            pixel_values: The input.
            what: What it is a batch of, for the message: "image".
            shape: Its shape, for the message: "(batch, channels, height, width)".
        """
        if pixel_values is None:
            raise ValueError(f"pixel_values is missing; pass {what}s of shape {shape}.")
        is_tensor = isinstance(pixel_values, Tensor)
        if not is_tensor or not pixel_values.is_floating_point():
            kind = pixel_values.dtype if is_tensor else type(pixel_values).__name__
            raise ValueError(
                f"pixel_values is of type {kind}; expected a tensor of floats {shape}, as the model's {what} processor "
                "returns."
            )
        if pixel_values.ndim != 1 + shape.count(",") or pixel_values.shape[-3] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; expected "
                f"{shape.replace('channels', str(self.config.num_channels))}, according to config.num_channels."
            )
        return pixel_values

    def _choose_backend(self, pixel_values: Tensor, output_attentions: bool) -> str:
        """The backend of a call. Triton may still be refused for the maps of a stage: `ops.backends` decides there."""
        requested, device = self.config._attn_implementation or EAGER, pixel_values.device
        call = Call(output_attentions, device, execution=execution(pixel_values))
        if requested == TRITON and refuse_machine(device) is not None:
            # The model was loaded on a machine with a GPU and then moved to another device.
            requested = SDPA
        if requested == TRITON and not output_attentions:
            return TRITON
        chosen = choose_backend(requested, call)
        if output_attentions and requested != EAGER and not torch.compiler.is_compiling():
            logger.warning_once(
                f"Attention weights were requested. {explain_backend(requested, call)}. The result is the same, but "
                'needs more memory; load the model with attn_implementation="eager" to avoid this warning.'
            )
        return chosen


class Swinv2Model(Swinv2PreTrainedModel):
    """The network without a head: images in, tokens and their mean out.

    Args:
        config: The configuration.
        add_pooling_layer: Whether to return the mean of the last tokens.
        use_mask_token: Whether the model has a token that replaces masked patches.

    Example:

        >>> import torch
        >>> from swinv2 import Swinv2Config, Swinv2Model
        >>> model = Swinv2Model(Swinv2Config(image_size=64, embed_dim=24, depths=[1, 1], num_heads=[1, 2])).eval()
        >>> outputs = model(torch.zeros(1, 3, 50, 70))
        >>> tuple(outputs.last_hidden_state.shape), tuple(outputs.pooler_output.shape)
        ((1, 63, 48), (1, 48))
    """

    def __init__(self, config: Swinv2Config, add_pooling_layer: bool = True, use_mask_token: bool = False) -> None:
        super().__init__(config)
        self.num_layers = config.num_layers
        self.num_features = config.hidden_size
        self.add_pooling_layer = add_pooling_layer
        self.embeddings = Embeddings(config, use_mask_token)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        pixel_values: Float[Tensor, "B *frames channels height width"] | None = None,
        bool_masked_pos: Bool[Tensor, "B patches"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Swinv2ModelOutput | tuple[Any, ...]:
        """Runs the network.

        Args:
            pixel_values: Images of any size.
            bool_masked_pos: True for the patches that the mask token replaces, row by row.
            output_attentions: Whether to return attention weights; None for the configuration's value. Only the backend
                "eager" has them, so it runs for this call.
            output_hidden_states: Whether to return every stage's tokens; None for the configuration's value.
            interpolate_pos_encoding: Whether to resample absolute position embeddings, if the model has them.
            return_dict: False for a plain tuple; None for the configuration's value.

        Raises:
            ValueError: The images, the mask or their sizes do not fit the model.
        """
        pixel_values = self._check_input(pixel_values)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        backend = self._choose_backend(pixel_values, bool(output_attentions))
        embedded = views_of(self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding, backend))
        stages = self.encoder(embedded.feature_map, backend, bool(output_attentions))
        views = [embedded, *(after for _, after, *_ in stages)]
        tokens = self.layernorm(views[-1].feature_map.flatten(1, -2))
        output = Swinv2ModelOutput(
            last_hidden_state=tokens,
            pooler_output=tokens.mean(dim=1) if self.add_pooling_layer else None,
            hidden_states=tuple(each.tokens for each in views) if output_hidden_states else None,
            attentions=stage_attentions(stages) if output_attentions else None,
            reshaped_hidden_states=tuple(each.channels_first for each in views) if output_hidden_states else None,
        )
        if self.config.return_dict if return_dict is None else return_dict:
            return output
        rest = (output.hidden_states, output.attentions, output.reshaped_hidden_states)
        return (output.last_hidden_state, output.pooler_output, *(item for item in rest if item is not None))
