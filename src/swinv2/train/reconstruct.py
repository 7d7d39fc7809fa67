"""The reconstructions of a pre-trained model.

In: image files and a model for masked-image modelling. Out: one figure with a row for each image.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from swinv2.errors import UsageError
from swinv2.heads import Swinv2ForMaskedImageModeling
from swinv2.images import BrokenImage, BrokenImageError, read_image
from swinv2.lengths import as_pair
from swinv2.loading import choose_device, load_model, load_processor
from swinv2.simmim import mask_of_pixels
from swinv2.train.data.augment import Pixels, for_evaluation
from swinv2.train.data.examples import make_seed, seeded
from swinv2.train.drawing.reconstructions import draw_reconstructions
from swinv2.train.pretrain import mask_maker


def reconstruct(
    images: Sequence[Path],
    model: str,
    output: Path,
    *,
    mask_ratio: float = 0.6,
    mask_block: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> tuple[float, list[BrokenImage]]:
    """Draws images, masked images and reconstructions.

    Args:
        images: The image files.
        model: A folder, or a name on the hub, of a model that `Swinv2ForMaskedImageModeling` saved.
        output: The PNG file to write.
        mask_ratio: Share of the blocks that are masked.
        mask_block: Side of a masked block in pixels of the model's input; None for the side of a token of the last
            stage, as in the authors' training.
        seed: Other seeds mask other blocks.
        device: See `loading.choose_device`.

    Returns:
        The model's loss: the mean error over masked pixels; and the images that cannot be read, which are left out.

    Raises:
        UsageError: No image or not the model can be read, or the mask does not fit the model.
    """
    chosen = choose_device(device)
    decoder = load_model(Swinv2ForMaskedImageModeling, model, chosen, torch.float32)
    config = decoder.config
    processor = load_processor(model, config.num_channels)
    pixels = Pixels(as_pair("image_size", config.image_size), processor.image_mean, processor.image_std)
    block = max(as_pair("encoder_stride", config.encoder_stride)) if mask_block is None else mask_block
    draw_mask = mask_maker(config, block, mask_ratio)
    transform = for_evaluation(pixels)
    read, masks, names, broken = list[Tensor](), list[Tensor](), list[str](), list[BrokenImage]()
    for image in images:
        try:
            read.append(transform(read_image(image, pixels.channels)))
        except BrokenImageError as error:
            broken.append(BrokenImage(image, str(error)))
            continue
        names.append(image.name)
        with seeded(make_seed(seed, len(masks))):
            masks.append(draw_mask())
    if not read:
        raise UsageError(f"no image can be read; the first one, {broken[0].path}: {broken[0].reason}.")
    inputs, hidden = torch.stack(read).to(chosen), torch.stack(masks).flatten(1).to(chosen)
    with torch.inference_mode():
        drawn = decoder(inputs, bool_masked_pos=hidden)
    hidden_pixels = mask_of_pixels(hidden, as_pair("patch_size", config.patch_size), pixels.size)
    draw_reconstructions(inputs, drawn.reconstruction, hidden_pixels, output, pixels, config.norm_targets, names)
    return float(drawn.loss), broken
