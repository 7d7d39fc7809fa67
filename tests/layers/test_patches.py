"""What FSDP asks of the modules that it may wrap."""

import pytest
import torch
from torch import Tensor, nn

from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.layers.block import SwinTransformerBlock
from swinv2.layers.patches import Embeddings, PatchEmbeddings, PatchMerging


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_returned_is_no_view(dtype: torch.dtype) -> None:
    """FSDP waits for the gradient of what a module returns, and may miss that of a view."""
    config = Swinv2Config(image_size=32, patch_size=4, window_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4])
    model = Swinv2ForImageClassification(config).to(dtype)
    views: dict[str, bool] = {}

    def note(module: nn.Module, _: object, output: Tensor | tuple[Tensor | None, ...]) -> None:
        tensors = [output] if isinstance(output, Tensor) else [each for each in output if each is not None]
        name = type(module).__name__
        views[name] = views.get(name, False) or any(each._is_view() for each in tensors)

    kinds = (PatchEmbeddings, Embeddings, SwinTransformerBlock, PatchMerging)
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(note)
    model(torch.rand(2, 3, 32, 32, dtype=dtype))
    assert views == {kind.__name__: False for kind in kinds}
