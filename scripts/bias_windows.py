"""Draws the position bias of a checkpoint in its own window and in a larger one, extrapolated and stretched.

    python scripts/bias_windows.py --output docs/guides/resolution-bias.png

It draws the last block of one stage. `set_image_size` changes the window; the figure shows the bias that the model then
adds to its logits.
"""

from pathlib import Path
from typing import Annotated

import typer
from transformers.utils.logging import disable_progress_bar

from swinv2 import Swinv2Model
from swinv2.inspect.bias_field import BiasField, draw_bias, field_of
from swinv2.inspect.observation import blocks_of
from swinv2.predict.shipped import shipped_model


def last_field(model: Swinv2Model, stage: int, how: str) -> BiasField:
    """The position bias of a stage's last block, with the model's current window."""
    number, block = [(number, block) for at, number, block in blocks_of(model) if at == stage][-1]
    spec = model.config.stages()[stage - 1]
    return field_of(block, spec, f"stage {stage}, block {number}: {how} {spec.window[1]} x {spec.window[0]} tokens")


def main(
    output: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("resolution-bias.png"),
    model: Annotated[str, typer.Option(help="A model's folder, or a name; default: the shipped one.")] = "",
    stage: Annotated[int, typer.Option(min=1, help="Number of the stage.")] = 1,
    scale: Annotated[int, typer.Option(min=2, help="Factor by which image and window grow.")] = 3,
) -> None:
    """Draws the three fields."""
    disable_progress_bar()
    network = Swinv2Model.from_pretrained(model or shipped_model())
    size = network.config.image_size
    windows = [(scale * height, scale * width) for height, width in network.config.stage_windows]
    larger = scale * size if isinstance(size, int) else (scale * size[0], scale * size[1])
    fields = [last_field(network, stage, "in its own windows of")]
    for stretch, how in ((False, "extrapolated to windows of"), (True, "stretched over windows of")):
        network = Swinv2Model.from_pretrained(model or shipped_model())
        network.set_image_size(larger, windows, stretch=stretch)
        fields.append(last_field(network, stage, how))
    draw_bias(fields, output, "One position bias at two windows", is_compared=True)


if __name__ == "__main__":
    typer.run(main)
