"""From pixels to patches, and from patches to fewer, wider ones.

In: pixels (B, channels, height, width) or a map (B, H, W, C). Out: a map (B, H, W, C). Any size goes in: what is no
multiple of the patch, or odd at merging, is padded with zeros at the bottom and right.

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
    """Cuts an image into patches and projects each to C channels.

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
        # What is exported must not depend on how these images are stored, or on the mode.
        run = execution(padded)
        is_exported = run is Execution.EXPORTED
        # Channels last: the convolution then writes the map as it is wanted. vmap knows no such format.
        if run is not Execution.INTERCEPTED:
            padded = (padded.clone if is_exported else padded.contiguous)(memory_format=torch.channels_last)
        feature_map = self.project(padded, backend).permute(0, 2, 3, 1)
        if is_exported or torch.is_grad_enabled():
            # A tensor of its own: FSDP, which may wrap this module, may miss the gradient of a view.
            return feature_map.clone(memory_format=torch.contiguous_format)
        return feature_map.contiguous()

    def pad(self, pixel_values: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B channels rows columns"]:
        """Images padded to whole patches."""
        # Without negative numbers, which converters of traced graphs divide otherwise.
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
        """The convolution."""
        return self.projection(pixel_values)


class Embeddings(nn.Module):
    """Patches, normalised; with mask tokens and position embeddings where the model has them.

    Args:
        config: The model's configuration.
        use_mask_token: Whether there is a learned token to put in place of masked patches.
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
        """The patches, normalised."""
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
            backend: Which backend of `ops.backends` runs.

        Raises:
            ValueError: A mask without a mask token or of the wrong shape; an image whose grid the position
                embeddings do not fit.
        """
        x = self.embed(pixel_values, backend)
        grid = (x.shape[1], x.shape[2])
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError(
                    "bool_masked_pos was given, but this model has no mask token; use use_mask_token=True."
                )
            if tuple(bool_masked_pos.shape) != (x.shape[0], grid[0] * grid[1]):
                raise ValueError(
                    f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}; expected one entry for each patch: "
                    f"{(x.shape[0], grid[0] * grid[1])}, the patches {grid[0]} x {grid[1]}, row by row."
                )
            x = torch.where(bool_masked_pos.bool().view(-1, *grid, 1), self.mask_token.to(x.dtype)[:, None], x)
        if self.position_embeddings is not None:
            if grid != self.grid and not interpolate_pos_encoding:
                raise ValueError(
                    f"the image has {grid[0]} x {grid[1]} patches, the position embeddings {self.grid[0]} x "
                    f"{self.grid[1]}; pass interpolate_pos_encoding=True, or call set_image_size."
                )
            x = x + resample_positions(self.position_embeddings, self.grid, grid).view(1, *grid, -1)
        return self.dropout(x)


def resample_positions(
    positions: Float[Tensor, "1 patches C"], grid: Pair, new_grid: Pair
) -> Float[Tensor, "1 new_patches C"]:
    """Resamples position embeddings, learned for one grid, to another one (bicubic)."""
    if grid == new_grid:
        return positions
    field = positions.float().view(1, *grid, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(field, size=new_grid, mode="bicubic", align_corners=False)
    return resampled.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)


class PatchMerging(nn.Module):
    """Joins 2 x 2 neighbouring patches into one of twice the channels, and normalises it.

    Args:
        spec: The stage whose map is merged.
    """

    def __init__(self, spec: StageSpec) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * spec.dim, 2 * spec.dim, bias=False)
        self.norm = nn.LayerNorm(2 * spec.dim)
        remember_structure(self)

    def forward(self, feature_map: Float[Tensor, "B H W C"], backend: str) -> Float[Tensor, "B (H+1)//2 (W+1)//2 2*C"]:
        """Joins and projects; `backend` is one of `ops.backends`."""
        height, width = feature_map.shape[1], feature_map.shape[2]
        if height % 2 or width % 2:
            feature_map = F.pad(feature_map, (0, 0, 0, width % 2, 0, height % 2))
        # Channels of the four patches one after another: down first, then across.
        tiles = feature_map.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return self.norm(self.reduce(tiles.permute(0, 1, 3, 4, 2, 5).flatten(3), backend))

    @fusible
    def reduce(self, joined: Tensor, backend: str) -> Tensor:
        """The linear layer from four patches' channels to two patches'."""
        return self.reduction(joined)
