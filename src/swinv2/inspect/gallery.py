"""Draws all figures of a model: the command `swinv2 inspect`.

In: a model's name and image files. Out: a folder of PNG files, and their numbers. For each image: the attention of a
token (`attention-NAME.png`) and the feature maps (`features-NAME.png`). For the model: the position bias (`bias.png`)
and the amplitudes over all images (`amplitudes.png`).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from swinv2.errors import UsageError
from swinv2.images import BrokenImage, read_or_skip
from swinv2.inspect.amplitudes import Amplitudes, draw_amplitudes
from swinv2.inspect.attention_map import StageRow, draw_attention, token_attention
from swinv2.inspect.bias_field import BiasField, by_direction, draw_bias
from swinv2.inspect.components import draw_components, principal_components
from swinv2.inspect.observation import Observation, StageAttention, blocks_of, observe
from swinv2.inspect.view import View, look
from swinv2.lengths import as_pair
from swinv2.loading import choose_device, load_model, load_processor, read_config
from swinv2.model import Swinv2Model
from swinv2.ops.backends import EAGER
from swinv2.ops.windows import Pair


@dataclass(frozen=True)
class Inspected:
    """The result for one image.

    Attributes:
        image: The file.
        size: Width and height of the image.
        seen: The part of the image that the model saw: left, top, right, bottom, in pixels of the image.
        pixel: The pixel (x, y) in the image that the model saw; its token is drawn.
        stages: For each stage: block, row and column of the token, window, shift, and for each head the attention
            weight of the token for itself and the sum of its weights for padding tokens.
        files: The figures.
    """

    image: str
    size: tuple[int, int]
    seen: tuple[float, float, float, float]
    pixel: tuple[int, int]
    stages: list[dict[str, Any]]
    files: list[str] = field(default_factory=list)


def parse_token(text: str | None) -> tuple[int, int] | None:
    """Reads a point that a user typed: "X,Y".

    Raises:
        UsageError: The text is not such a pair.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise UsageError(
            f"--token is {text!r}; expected X,Y: pixels from the left and from the top of the image, as in 120,80."
        )
    return int(parts[0]), int(parts[1])


class Inspector:
    """Draws figures of a model.

    Args:
        model: The network, on its device, with `attn_implementation="eager"`.
        processor: Its image processor.
        name: Name of the model in the figures.
        stage: "stage1" and so on for one stage; None for all.
    """

    def __init__(self, model: Swinv2Model, processor: Any, name: str, stage: str | None = None) -> None:
        self.model, self.processor, self.name, self.stage = model, processor, name, stage
        self.amplitudes = Amplitudes()
        self._names: set[str] = set()

    @classmethod
    def load(cls, name: str, stage: str | None = None, device: str = "auto") -> Self:
        """Loads a model and its processor.

        Args:
            name: A folder, or a name on the hub; the model may have any head.
            stage: See the class.
            device: See `loading.choose_device`.

        Raises:
            UsageError: There is no such stage, or the model, the device or the processor cannot be used.
        """
        stages = read_config(name).stage_names[1:]
        if stage is not None and stage not in stages:
            raise UsageError(f"--stage is {stage!r}; the model {name!r} has {', '.join(stages)}.")
        # Only the backend "eager" returns attention weights.
        model = load_model(Swinv2Model, name, choose_device(device), torch.float32, attn_implementation="eager")
        return cls(model, load_processor(name), Path(name).name or name, stage)

    def inspect(
        self, paths: Iterable[Path], output: Path, point: tuple[int, int] | None = None
    ) -> Iterator[tuple[Path, Inspected | BrokenImage]]:
        """For each image, draws the attention of a token and the feature maps.

        Args:
            paths: The files.
            output: The folder to write to.
            point: A point (x, y) of the token, in pixels of each image; None for the centre.

        Returns:
            For each file, in order, the result or the reason why the file was skipped.

        Raises:
            UsageError: The point is not in an image, or the folder cannot be written to.
        """
        for path in paths:
            image = read_or_skip(path)
            if isinstance(image, BrokenImage):
                yield path, image
                continue
            view = look(image, self.processor)
            pixel = view.find(point)
            seen = observe(self.model, view.pixel_values.to(self.model.device, self.model.dtype))
            self.amplitudes.add(seen)
            yield path, self._draw_image(path, view, pixel, seen, output)

    def draw_model(self, output: Path) -> dict[str, list[Any]]:
        """Draws the position bias, and the amplitudes over all inspected images; nothing if there are none.

        Args:
            output: The folder to write to.

        Returns:
            The amplitudes, the range of each stage's position bias, and the names of the figures, for JSON.
        """
        measured = self.amplitudes.measured()
        if not measured:
            return {"amplitudes": [], "bias": [], "files": []}
        fields = self._bias_fields()
        files = [output / "bias.png", output / "amplitudes.png"]
        with _writing(output):
            draw_bias(fields, files[0], f"Position bias of {self.name}")
            draw_amplitudes({self.name: measured}, files[1], f"Amplitude of activations in {self.name}")
        ranges = [
            {
                "block": field.title,
                "window": list(field.window),
                "learned_window": list(field.learned_window),
                "lowest": [float(values.min()) for values in field.values],
                "highest": [float(values.max()) for values in field.values],
            }
            for field in fields
        ]
        return {
            "amplitudes": [asdict(amplitude) for amplitude in measured],
            "bias": ranges,
            "files": [str(file) for file in files],
        }

    def _wants(self, stage: int) -> bool:
        return self.stage in (None, f"stage{stage}")

    def _token_size(self, stage: int) -> Pair:
        """Size (height, width) of a stage's token in pixels; 0 is the patch embedding, with the tokens of stage 1."""
        down, across = as_pair("patch_size", self.model.config.patch_size)
        return down << max(stage - 1, 0), across << max(stage - 1, 0)

    def _draw_image(self, path: Path, view: View, pixel: Pair, seen: Observation, output: Path) -> Inspected:
        rows: list[StageRow] = []
        numbers: list[dict[str, Any]] = []
        for stage in (stage for stage in seen.attentions if self._wants(stage.stage)):
            size = self._token_size(stage.stage)
            token = (pixel[0] // size[0], pixel[1] // size[1])
            attention = token_attention(stage.weights, stage.plan, token)
            rows.append(StageRow(_in_words(stage), attention, size))
            numbers.append(
                {
                    "stage": stage.stage,
                    "block": stage.block,
                    "token": list(token),
                    "window": list(stage.plan.window),
                    "shift": list(stage.plan.shift),
                    "on_itself": attention.weights[:, token[0], token[1]].tolist(),
                    "beyond_the_map": attention.on_padding.tolist(),
                }
            )
        maps = {name: tokens for name, tokens in seen.stage_maps().items() if self.stage in (None, name)}
        components = {name: principal_components(tokens[0]) for name, tokens in maps.items()}
        sizes = {name: self._token_size(int(name.removeprefix("stage") if name != "stem" else 0)) for name in maps}
        name = self._name_of(path)
        files = [output / f"attention-{name}.png", output / f"features-{name}.png"]
        with _writing(output):
            about = f"{path.name} seen by {self.name}"
            draw_attention(rows, view.rgb, files[0], f"Attention of one token: {about}")
            draw_components(components, view.rgb, sizes, files[1], f"Feature maps by principal components: {about}")
        return Inspected(
            str(path),
            (view.size[1], view.size[0]),
            view.box,
            (pixel[1], pixel[0]),
            numbers,
            [str(file) for file in files],
        )

    def _name_of(self, path: Path) -> str:
        """The file's name without its suffix, with a number if an earlier image had the same name."""
        name, number = path.stem, 2
        while name in self._names:
            name, number = f"{path.stem}-{number}", number + 1
        self._names.add(name)
        return name

    def _bias_fields(self) -> list[BiasField]:
        last = {stage: (number, block) for stage, number, block in blocks_of(self.model)}
        fields: list[BiasField] = []
        for spec in self.model.config.stages():
            stage = spec.index + 1
            if self._wants(stage):
                number, block = last[stage]
                with torch.no_grad():
                    table = block.attention.self.bias_table(torch.empty(0, device=self.model.device), EAGER)
                title = f"stage {stage}, block {number}: windows of {spec.window[1]} x {spec.window[0]}"
                fields.append(BiasField(title, by_direction(table), spec.window, spec.learned_window))
        return fields


def _in_words(stage: StageAttention) -> str:
    plan = stage.plan
    shifted = f", shifted by {max(plan.shift)}" if any(plan.shift) else ""
    return (
        f"stage {stage.stage}, block {stage.block}: map of {plan.grid[1]} x {plan.grid[0]} tokens, windows of "
        f"{plan.window[1]} x {plan.window[0]}{shifted}"
    )


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"--output {str(output)!r} cannot be written to: {error}.") from error
