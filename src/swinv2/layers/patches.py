"""Patch embedding and patch merging.

In: pixels (B, channels, height, width) or a map (B, H, W, C). Out: a map (B, H, W, C). Any size is allowed: images are
padded to whole patches, and maps to an even size before merging, with zeros at the bottom and right. Of videos, pixels
are (B, frames, channels, height, width), maps (B, frames, H, W, C), and the last frame is repeated to fill a patch.

Source: Liu et al., Swin Transformer (arXiv 2103.14030), section 3.1; SimMIM (arXiv 2111.09886) for the mask token; Liu
et al., Video Swin Transformer (arXiv 2106.13230), section 3.1.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from swinv2.config import StageSpec, Swinv2Config
from swinv2.layers.fusion import fusible, remember_structure
from swinv2.lengths import Lengths, in_words
from swinv2.ops.backends import EAGER
from swinv2.ops.execution import Execution, execution


class PatchEmbeddings(nn.Module):
    """Cuts an image or a video into patches and projects each patch to C channels.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: Swinv2Config) -> None:
        super().__init__()
        self.patch_size = config.patch_lengths
        convolution: Any = nn.Conv2d if len(self.patch_size) == 2 else nn.Conv3d
        self.projection = convolution(config.num_channels, config.embed_dim, self.patch_size, self.patch_size)
        remember_structure(self)

    def forward(
        self, pixel_values: Float[Tensor, "B *frames channels height width"], backend: str = EAGER
    ) -> Float[Tensor, "B *grid C"]:
        """Cuts and projects; `backend` is one of `ops.backends`."""
        padded = self.pad(pixel_values)
        # An exported graph must not depend on the memory format of these images or on the gradient mode.
        run = execution(padded)
        is_exported = run is Execution.EXPORTED
        # With channels last, the convolution writes the map in its final layout. vmap does not support this format.
        if run is not Execution.INTERCEPTED:
            last = torch.channels_last if padded.ndim == 4 else torch.channels_last_3d
            padded = (padded.clone if is_exported else padded.contiguous)(memory_format=last)
        feature_map = self.project(padded, backend).permute(0, *range(2, padded.ndim), 1)
        if is_exported or torch.is_grad_enabled():
            # A copy: if FSDP wraps this module, it may miss the gradient of a view.
            return feature_map.clone(memory_format=torch.contiguous_format)
        return feature_map.contiguous()

    def pad(
        self, pixel_values: Float[Tensor, "B *frames channels height width"]
    ) -> Float[Tensor, "B channels *lengths"]:
        """Images or videos padded to whole patches, with the channels before the frames."""
        if pixel_values.ndim == 5:
            pixel_values = pixel_values.transpose(1, 2)
        # No negative numbers: some converters of traced graphs round their quotients differently.
        *later, bottom, right = (
            (patch - length % patch) % patch
            for length, patch in zip(pixel_values.shape[2:], self.patch_size, strict=True)
        )
        padded = F.pad(pixel_values, (0, right, 0, bottom))
        for frames in later:
            last = padded[:, :, -1:]
            padded = torch.cat([padded, *[last] * frames], 2) if frames else padded
        return padded

    def cut(self, pixel_values: Float[Tensor, "B *frames channels height width"]) -> Float[Tensor, "B *grid pixels"]:
        """The pixels of each patch, in the order of the convolution's weights."""
        patches, axes = self.pad(pixel_values), len(self.patch_size)
        for axis in reversed(range(axes)):
            patches = patches.unflatten(2 + axis, (-1, self.patch_size[axis]))
        counts, sides = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        return patches.permute(0, *counts, 1, *sides).flatten(1 + axes)

    @fusible
    def project(self, pixel_values: Tensor, backend: str) -> Tensor:
        """The projection, a convolution."""
        return self.projection(pixel_values)


class Embeddings(nn.Module):
    """Patch embedding and norm; then mask tokens and absolute position embeddings, if the model has them.

    Args:
        config: The model's configuration.
        use_mask_token: Whether a learned token replaces masked patches.
    """

    def __init__(self, config: Swinv2Config, use_mask_token: bool) -> None:
        super().__init__()
        self.patch_embeddings = PatchEmbeddings(config)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Position embeddings are those of a frame.
        self.grid = config.patch_grid[-2:]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim)) if use_mask_token else None
        self.position_embeddings = (
            nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], config.embed_dim))
            if config.use_absolute_embeddings
            else None
        )
        remember_structure(self)

    @fusible
    def embed(self, pixel_values: Tensor, backend: str) -> Tensor:
        """Patch embedding and norm."""
        return self.norm(self.patch_embeddings(pixel_values, backend))

    def forward(
        self,
        pixel_values: Float[Tensor, "B *frames channels height width"],
        bool_masked_pos: Bool[Tensor, "B patches"] | None,
        interpolate_pos_encoding: bool,
        backend: str = EAGER,
    ) -> Float[Tensor, "B *grid C"]:
        """Embeds images.

        Args:
            pixel_values: The images or videos.
            bool_masked_pos: True for the patches that the mask token replaces, row by row.
            interpolate_pos_encoding: Whether to resample the position embeddings to the image's grid.
            backend: A backend of `ops.backends`.

        Raises:
            ValueError: A mask is given, and the model has no mask token or the mask has the wrong shape; or the
                position embeddings have another grid than the image.
        """
        x = self.embed(pixel_values, backend)
        grid = tuple(x.shape[1:-1])
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError(
                    "bool_masked_pos was given, but this model has no mask token; build it with use_mask_token=True."
                )
            if tuple(bool_masked_pos.shape) != (x.shape[0], math.prod(grid)):
                raise ValueError(
                    f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}; expected one entry for each patch: "
                    f"{(x.shape[0], math.prod(grid))}, {in_words(grid)} patches row by row."
                )
            x = torch.where(bool_masked_pos.bool().view(-1, *grid, 1), self.mask_token.to(x.dtype).flatten(), x)
        if self.position_embeddings is not None:
            grid = grid[-2:]
            if grid != self.grid and not interpolate_pos_encoding:
                raise ValueError(
                    f"the image has {in_words(grid)} patches, but the position embeddings are for "
                    f"{in_words(self.grid)}; pass interpolate_pos_encoding=True, or call set_image_size."
                )
            x = x + resample_positions(self.position_embeddings, self.grid, grid).view(1, *grid, -1)
        return self.dropout(x)


def resample_positions(
    positions: Float[Tensor, "1 patches C"], grid: Lengths, new_grid: Lengths
) -> Float[Tensor, "1 new_patches C"]:
    """Resamples the position embeddings of patches from one grid to another (bicubic)."""
    if grid == new_grid:
        return positions
    field = positions.float().view(1, *grid, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(field, size=new_grid, mode="bicubic", align_corners=False)
    return resampled.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)


class PatchMerging(nn.Module):
    """Merges 2 x 2 neighbouring tokens of an image, or of a video's frame, into one with twice the channels, then
    normalises.

    Args:
        spec: The stage whose map is merged.
    """

    def __init__(self, spec: StageSpec) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * spec.dim, 2 * spec.dim, bias=False)
        self.norm = nn.LayerNorm(2 * spec.dim)
        remember_structure(self)

    def forward(
        self, feature_map: Float[Tensor, "*frames H W C"], backend: str
    ) -> Float[Tensor, "*frames (H+1)//2 (W+1)//2 2*C"]:
        """Merges and normalises; `backend` is one of `ops.backends`."""
        height, width = feature_map.shape[-3], feature_map.shape[-2]
        if height % 2 or width % 2:
            feature_map = F.pad(feature_map, (0, 0, 0, width % 2, 0, height % 2))
        # The channels of the four tokens one after another: down the columns first, then across.
        tiles = feature_map.unflatten(-2, (-1, 2)).unflatten(-4, (-1, 2))
        frames = feature_map.ndim - 3
        order = (*range(frames), *(frames + axis for axis in (0, 2, 3, 1, 4)))
        return self.norm(self.reduce(tiles.permute(order).flatten(-3), backend))

    @fusible
    def reduce(self, joined: Tensor, backend: str) -> Tensor:
        """The linear layer, from 4 C to 2 C channels."""
        return self.reduction(joined)
