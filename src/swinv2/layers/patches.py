"""Patch embedding and patch merging.

In: pixels (B, channels, height, width) or a map (B, H, W, C). Out: a map (B, H, W, C). Any size is allowed: images are
padded to whole patches, and maps to an even size before merging, with zeros at the bottom and right.

Source: Liu et al., Swin Transformer (arXiv 2103.14030), section 3.1; SimMIM (arXiv 2111.09886) for the mask token.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from swinv2.config import StageSpec, Swinv2Config
from swinv2.layers.fusion import fusible, remember_structure
from swinv2.lengths import as_pair
from swinv2.ops.backends import EAGER
from swinv2.ops.execution import Execution, execution
from swinv2.ops.windows import Pair


class PatchEmbeddings(nn.Module):
    """Cuts an image into patches and projects each patch to C channels.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: Swinv2Config) -> None:
        super().__init__()
        self.patch_size = as_pair("patch_size", config.patch_size)
        self.projection = nn.Conv2d(config.num_channels, config.embed_dim, self.patch_size, self.patch_size)
        remember_structure(self)

    def forward(
        self, pixel_values: Float[Tensor, "B channels height width"], backend: str = EAGER
    ) -> Float[Tensor, "B H W C"]:
        """Cuts and projects; `backend` is one of `ops.backends`."""
        padded = self.pad(pixel_values)
        # An exported graph must not depend on the memory format of these images or on the gradient mode.
        run = execution(padded)
        is_exported = run is Execution.EXPORTED
        # With channels last, the convolution writes the map in its final layout. vmap does not support this format.
        if run is not Execution.INTERCEPTED:
            padded = (padded.clone if is_exported else padded.contiguous)(memory_format=torch.channels_last)
        feature_map = self.project(padded, backend).permute(0, 2, 3, 1)
        if is_exported or torch.is_grad_enabled():
            # A copy: if FSDP wraps this module, it may miss the gradient of a view.
            return feature_map.clone(memory_format=torch.contiguous_format)
        return feature_map.contiguous()

    def pad(self, pixel_values: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B channels rows columns"]:
        """Images padded to whole patches."""
        # No negative numbers: some converters of traced graphs round their quotients differently.
        bottom, right = (
            (patch - length % patch) % patch
            for length, patch in zip(pixel_values.shape[2:], self.patch_size, strict=True)
        )
        return F.pad(pixel_values, (0, right, 0, bottom))

    def cut(self, pixel_values: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B H W pixels"]:
        """The pixels of each patch, in the order of the convolution's weights."""
        height, width = self.patch_size
        patches = self.pad(pixel_values).unflatten(3, (-1, width)).unflatten(2, (-1, height))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3)

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
        self.grid = config.patch_grid
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
        pixel_values: Float[Tensor, "B channels height width"],
        bool_masked_pos: Bool[Tensor, "B patches"] | None,
        interpolate_pos_encoding: bool,
        backend: str = EAGER,
    ) -> Float[Tensor, "B H W C"]:
        """Embeds images.

        Args:
            pixel_values: The images.
            bool_masked_pos: True for the patches that the mask token replaces, row by row.
            interpolate_pos_encoding: Whether to resample the position embeddings to the image's grid.
            backend: A backend of `ops.backends`.

        Raises:
            ValueError: A mask is given, and the model has no mask token or the mask has the wrong shape; or the
                position embeddings have another grid than the image.
        """
        x = self.embed(pixel_values, backend)
        grid = (x.shape[1], x.shape[2])
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError(
                    "bool_masked_pos was given, but this model has no mask token; build it with use_mask_token=True."
                )
            if tuple(bool_masked_pos.shape) != (x.shape[0], grid[0] * grid[1]):
                raise ValueError(
                    f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}; expected one entry for each patch: "
                    f"{(x.shape[0], grid[0] * grid[1])}, {grid[0]} x {grid[1]} patches row by row."
                )
            x = torch.where(bool_masked_pos.bool().view(-1, *grid, 1), self.mask_token.to(x.dtype)[:, None], x)
        if self.position_embeddings is not None:
            if grid != self.grid and not interpolate_pos_encoding:
                raise ValueError(
                    f"the image has {grid[0]} x {grid[1]} patches, but the position embeddings are for "
                    f"{self.grid[0]} x {self.grid[1]}; pass interpolate_pos_encoding=True, or call set_image_size."
                )
            x = x + resample_positions(self.position_embeddings, self.grid, grid).view(1, *grid, -1)
        return self.dropout(x)


def resample_positions(
    positions: Float[Tensor, "1 patches C"], grid: Pair, new_grid: Pair
) -> Float[Tensor, "1 new_patches C"]:
    """Resamples the position embeddings of patches from one grid to another (bicubic)."""
    if grid == new_grid:
        return positions
    field = positions.float().view(1, *grid, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(field, size=new_grid, mode="bicubic", align_corners=False)
    return resampled.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)


class PatchMerging(nn.Module):
    """Merges 2 x 2 neighbouring tokens into one with twice the channels, then normalises.

    Args:
        spec: The stage whose map is merged.
    """

    def __init__(self, spec: StageSpec) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * spec.dim, 2 * spec.dim, bias=False)
        self.norm = nn.LayerNorm(2 * spec.dim)
        remember_structure(self)

    def forward(self, feature_map: Float[Tensor, "B H W C"], backend: str) -> Float[Tensor, "B (H+1)//2 (W+1)//2 2*C"]:
        """Merges and normalises; `backend` is one of `ops.backends`."""
        height, width = feature_map.shape[1], feature_map.shape[2]
        if height % 2 or width % 2:
            feature_map = F.pad(feature_map, (0, 0, 0, width % 2, 0, height % 2))
        # The channels of the four tokens one after another: down the columns first, then across.
        tiles = feature_map.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return self.norm(self.reduce(tiles.permute(0, 1, 3, 4, 2, 5).flatten(3), backend))

    @fusible
    def reduce(self, joined: Tensor, backend: str) -> Tensor:
        """The linear layer, from 4 C to 2 C channels."""
        return self.reduction(joined)
