"""Draws all figures of a model: the command `swinv2 inspect`.

In: a model's name and image files. Out: a folder of PNG files, and their numbers. For each image: the attention of a
token (`attention-NAME.png`) and the feature maps (`features-NAME.png`). For the model: the position bias (`bias.png`)
and the amplitudes over all images (`amplitudes.png`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from swinv2.errors import UsageError
from swinv2.images import BrokenImage, read_or_skip
from swinv2.inspect.amplitudes import Amplitudes, draw_amplitudes
from swinv2.inspect.attention_map import TokenAttention, draw_attention, token_attention
from swinv2.inspect.bias_field import BiasField, draw_bias, field_of
from swinv2.inspect.components import Components, draw_components, principal_components
from swinv2.inspect.observation import BlockTrace, Observation, blocks_of, observe, token_size_of
from swinv2.inspect.view import View, look
from swinv2.lengths import Lengths, Pair
from swinv2.loading import choose_device, load_model, load_processor, read_config
from swinv2.model import Swinv2Model


class Inspector:
    """Draws figures of a model.

    Args:
        model: The network, on its device, with `attn_implementation="eager"`.
        processor: Its image processor.
        name: Name of the model in the figures.
        stage: "stage1" and so on for one stage; None for all.
    """

    model_class: ClassVar[type[Swinv2Model]] = Swinv2Model
    load_processor_of: ClassVar[Callable[[str, int], Any]] = staticmethod(load_processor)
    """Loads the processor that is stored with a model of so many channels."""

    def __init__(self, model: Swinv2Model, processor: Any, name: str, stage: str | None = None) -> None:
        self.model, self.processor, self.name, self.stage = model, processor, name, stage
        self.amplitudes = Amplitudes()
        self._names: set[str] = set()

    @classmethod
    def load(cls, name: str, stage: str | None = None, device: str = "auto") -> Self:
        """Loads a model, which may have any head, and its processor; see `predict.predictor.FeatureExtractor.load`."""
        stages = read_config(name, None).stage_names[1:]
        if stage is not None and stage not in stages:
            raise UsageError(f"--stage is {stage!r}; the model {name!r} has {', '.join(stages)}.")
        # Only the backend "eager" returns attention weights.
        model = load_model(cls.model_class, name, choose_device(device), torch.float32, attn_implementation="eager")
        return cls(model, cls.load_processor_of(name, model.config.num_channels), Path(name).name or name, stage)

    def inspect(
        self, paths: Iterable[Path], output: Path, point: tuple[int, int] | None = None
    ) -> Iterator[tuple[Path, dict[str, Any] | BrokenImage]]:
        """For each image, draws the attention of a token and the feature maps.

        Args:
            paths: The files.
            output: The folder to write to.
            point: A point (x, y) of the token, in pixels of each image; None for the centre.

        Returns:
            For each file, in order, the reason why it was skipped, or a dictionary for JSON:

            - "image": the file;
            - "size": width and height of the image;
            - "seen": the part of the image that the model saw: left, top, right, bottom, in pixels of the image;
            - "pixel": the pixel (x, y) in the image that the model saw; its token is drawn;
            - "stages": for each stage, block, row and column of the token, window, shift, and for each head the
              attention weight of the token for itself and the sum of its weights for padding tokens;
            - "files": the figures.

        Raises:
            UsageError: The point is not in an image.
        """
        for path in paths:
            image = read_or_skip(path, self.model.config.num_channels)
            if isinstance(image, BrokenImage):
                yield path, image
                continue
            view = look(image, self.processor)
            pixel = view.find(point)
            seen = observe(self.model, view.pixel_values.to(self.model.device, self.model.dtype))
            self.amplitudes.add(seen)
            yield path, self._draw_image(path, view, pixel, seen, output)

    def draw_model(self, output: Path) -> dict[str, list[Any]]:
        """Draws the position bias, and the amplitudes over all that was inspected; nothing if there is none.

        Args:
            output: The folder to write to.

        Returns:
            The amplitudes, the range of each stage's position bias, and the names of the figures, for JSON.
        """
        measured = self.amplitudes.measured()
        if not measured:
            return {"amplitudes": [], "bias": [], "files": []}
        last = {stage: (number, block) for stage, number, block in blocks_of(self.model)}
        fields: list[BiasField] = []
        for spec in self.model.config.stages():
            if self.stage in (None, spec.name):
                number, block = last[spec.index + 1]
                windows = f"windows of {_in_words(spec.window)}"
                fields.append(field_of(block, spec, f"stage {spec.index + 1}, block {number}: {windows}"))
        files = [output / "bias.png", output / "amplitudes.png"]
        draw_bias(fields, files[0], f"Position bias of {self.name}")
        draw_amplitudes({self.name: measured}, files[1], f"Amplitude of activations in {self.name}")
        ranges = [
            {
                "block": field.title,
                "window": field.window,
                "learned_window": field.learned_window,
                "lowest": field.values.reshape(len(field.values), -1).min(1).tolist(),
                "highest": field.values.reshape(len(field.values), -1).max(1).tolist(),
            }
            for field in fields
        ]
        return {
            "amplitudes": [asdict(amplitude) for amplitude in measured],
            "bias": ranges,
            "files": [str(file) for file in files],
        }

    def _draw_image(self, path: Path, view: View, pixel: Pair, seen: Observation, output: Path) -> dict[str, Any]:
        """Draws attention and feature maps of one image, and returns their numbers and the figures' names."""
        attentions, token_sizes, numbers = self._attentions(seen, pixel)
        components, sizes_of_maps = self._components(seen)
        files, about = self._figures_of(path, output)
        draw_attention(attentions, view.rgb, token_sizes, files[0], f"Attention of one token: {about}")
        draw_components(components, view.rgb, sizes_of_maps, files[1], f"Feature maps by principal components: {about}")
        return {
            "image": str(path),
            "size": (view.size[1], view.size[0]),
            "seen": view.box,
            "pixel": (pixel[1], pixel[0]),
            "stages": numbers,
            "files": [str(file) for file in files],
        }

    def _attentions(
        self, seen: Observation, pixel: Pair, *time: int
    ) -> tuple[dict[str, TokenAttention], dict[str, Pair], list[dict[str, Any]]]:
        """The attention of the token at a pixel, and of a video at a place in time, in each stage that is drawn.

        Returns:
            The attention and the size (height, width) of a token, each by the name of the block in words, and the
            numbers of each block for JSON.
        """
        attentions: dict[str, TokenAttention] = {}
        token_sizes: dict[str, Pair] = {}
        numbers: list[dict[str, Any]] = []
        for trace in seen.blocks:
            if trace.weights is None or self.stage not in (None, f"stage{trace.stage}"):
                continue
            height, width = token_size_of(self.model.config, trace.stage)
            token = (*time, pixel[0] // height, pixel[1] // width)
            name, attention = _block_in_words(trace), token_attention(trace.weights, trace.plan, token)
            attentions[name], token_sizes[name] = attention, (height, width)
            numbers.append(
                {
                    "stage": trace.stage,
                    "block": trace.block,
                    "token": token,
                    "window": trace.plan.window,
                    "shift": trace.plan.shift,
                    "on_itself": attention.weights[(slice(None), *token)].tolist(),
                    "beyond_the_map": attention.on_padding.tolist(),
                }
            )
        return attentions, token_sizes, numbers

    def _components(self, seen: Observation) -> tuple[dict[str, Components], dict[str, Pair]]:
        """The principal components of each map that is drawn, and the size of its tokens in pixels, by its name."""
        maps = {name: tokens for name, tokens in seen.stage_maps().items() if self.stage in (None, name)}
        # The map of the stem has the tokens of stage 1.
        sizes = {
            name: token_size_of(self.model.config, 1 if name == "stem" else int(name[len("stage") :])) for name in maps
        }
        return {name: principal_components(tokens[0]) for name, tokens in maps.items()}, sizes

    def _figures_of(self, path: Path, output: Path) -> tuple[list[Path], str]:
        """The figures of a file, of attention and of feature maps, and what they show in words."""
        name = self._name_of(path)
        files = [output / f"attention-{name}.png", output / f"features-{name}.png"]
        return files, f"{path.name} seen by {self.name}"

    def _name_of(self, path: Path) -> str:
        """The file's name without its suffix, with a number if an earlier one had the same name."""
        name, number = path.stem, 2
        while name in self._names:
            name, number = f"{path.stem}-{number}", number + 1
        self._names.add(name)
        return name


def _block_in_words(trace: BlockTrace) -> str:
    """Stage, block, map and windows of a recorded block, for the title of its figure."""
    plan = trace.plan
    shift = str(plan.shift[0]) if len(set(plan.shift)) == 1 else _in_words(plan.shift)
    shifted = f", shifted by {shift}" if any(plan.shift) else ""
    return (
        f"stage {trace.stage}, block {trace.block}: map of {_in_words(plan.grid)} tokens, windows of "
        f"{_in_words(plan.window)}{shifted}"
    )


def _in_words(lengths: Lengths) -> str:
    """The size of a map or window in words, width first; of a video with the length in time."""
    *time, height, width = lengths
    return f"{width} x {height}" + "".join(f" (x {length} in time)" for length in time)
