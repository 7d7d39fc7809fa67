"""The web page, in Gradio: what stands where, and what happens on an upload and a click.

In: a model of `model`, and example photographs. Out: Gradio's `Blocks`. Files are read by `images.read_image`, not by
Gradio, so that all formats are shown and an error is a sentence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from PIL import Image

from swinv2.dense.answers import Detector, Segmenter
from swinv2.errors import UsageError
from swinv2.images import BrokenImageError
from swinv2.lengths import Pair
from swinv2.page.figures import (
    MEAN,
    draw_attention_of,
    draw_classes_of,
    draw_maps,
    draw_objects_of,
    enlarge,
    factor_of,
    head_names,
    maps_as_html,
)
from swinv2.page.model import STEM, TOP_K, PageModel, Shown, pixel_at

THUMBNAIL = 144
"""Longer side of an example in the strip, in pixels."""

ALL_MAPS = "all"

MOST_WAITING = 32
"""Requests that wait for the model; further ones are answered that the page is busy."""

KEPT_SECONDS = 3600
"""Uploaded images are deleted after this time."""

CSS = """
.gradio-container { width: 100% !important; min-width: 0 !important; }
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#message p { color: #b42318; font-weight: 600; }
.dark #message p { color: #fda29b; }
#examples { contain: inline-size; }
#examples .grid-wrap { height: auto !important; max-height: none !important; min-height: 0 !important; padding: 8px; }
#examples .grid-container { display: flex !important; overflow-x: auto; gap: 6px; padding-bottom: 8px; }
#examples .grid-container > * { flex: 0 0 76px; width: 76px !important; height: 76px !important; }
#shown img, #attention img { cursor: crosshair; }
#shown label, #attention label { pointer-events: none; }
#found-text ul.legend { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 16px; }
#found-text ul.legend li { display: flex; align-items: center; gap: 6px; overflow-wrap: anywhere; }
#found-text .swatch { flex: none; width: 14px; height: 14px; border: 1px solid #0006; border-radius: 3px; }
#maps .maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 12px; }
#maps figure { margin: 0; }
#maps img { width: 100%; border-radius: 4px; }
#maps figcaption { font-size: 0.85em; line-height: 1.3; margin-top: 4px; }
"""
"""Style: examples in a row that scrolls sideways; legends and figures that wrap."""


class Page:
    """The page of a model.

    Args:
        model: The model.
        examples: Image files to choose from, each with what it shows in words.
    """

    def __init__(self, model: PageModel, examples: Sequence[tuple[Path, str]] = ()) -> None:
        self.model, self.examples = model, list(examples)
        self.finds = isinstance(model.answers, (Segmenter, Detector))
        self.has_threshold = isinstance(model.answers, Detector)
        self.has_labels = model.answers is not None and not self.finds
        self.looks = model.network is not None

    def build(self) -> Any:
        """Builds Gradio's `Blocks`."""
        title = f"swinv2: {self.model.name}"
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as blocks:
            # What a session looks at: the file, and the pixel in the model's input.
            path, pixel = gr.State(None), gr.State(None)
            gr.Markdown(f"## {self.model.name}\n\n{describe(self.model)}")
            with gr.Row():
                with gr.Column(min_width=320):
                    drop = gr.File(
                        label="Image file",
                        file_types=["image"],
                        height=140,
                        elem_id="drop",
                    )
                    strip = self._examples()
                    message = gr.Markdown(visible=False, elem_id="message")
                    shown = gr.Image(
                        label="Image: click a point to see its attention" if self.looks else "Image",
                        interactive=False,
                        buttons=[],
                        elem_id="shown",
                    )
                    labels = gr.Label(
                        label=f"{min(TOP_K, len(self.model.names))} most probable labels",
                        visible=self.has_labels,
                        elem_id="labels",
                    )
                with gr.Column(min_width=320):
                    found, legend, threshold = self._found()
                    stage, head, attention, numbers, chosen_map, maps = self._inside()
            figures = [found, legend, attention, numbers, maps]
            outputs = [path, pixel, message, shown, labels, *figures]
            choices = [threshold, stage, head, chosen_map]
            run: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
            drop.upload(self.open_file, [drop, *choices], [drop, *outputs], **run)
            if self.examples:
                strip.select(self.open_example, choices, outputs, **run)
                blocks.load(self.open_first, choices, outputs, **run)
            if self.has_threshold:
                threshold.release(self.draw_found, [path, threshold], [found, legend], **run)
            if self.looks:
                looked = [attention, numbers]
                shown.select(self.click, [path, pixel, stage, head], [pixel, message, *looked], **run)
                attention.select(self.click_attention, [path, pixel, stage, head], [pixel, message, *looked], **run)
                stage.input(self.choose_stage, [path, pixel, stage, head], [head, *looked], **run)
                head.input(self.draw_attention, [path, pixel, stage, head], looked, **run)
                chosen_map.input(self.draw_maps, [path, chosen_map], maps, **run)
        blocks.queue(max_size=MOST_WAITING)
        return blocks

    def _examples(self) -> Any:
        """The strip of examples."""
        return gr.Gallery(
            [_thumbnail(path) for path, _ in self.examples],
            label="Examples",
            show_label=False,
            columns=max(len(self.examples), 1),
            allow_preview=False,
            object_fit="cover",
            buttons=[],
            visible=bool(self.examples),
            elem_id="examples",
        )

    def _found(self) -> tuple[Any, Any, Any]:
        """What a segmenter or detector finds: the figure, the legend, and the lowest score of an object."""
        what = "Objects" if self.has_threshold else "Classes"
        figure = gr.Image(
            label=what, interactive=False, visible=self.finds, buttons=["fullscreen", "download"], elem_id="found"
        )
        legend = gr.HTML(visible=self.finds, elem_id="found-text")
        threshold = gr.Slider(
            0, 1, 0.5, step=0.05, label="Lowest score of an object", visible=self.has_threshold, elem_id="threshold"
        )
        return figure, legend, threshold

    def _inside(self) -> tuple[Any, ...]:
        """The attention of a token with its stage and head, and the feature maps."""
        stages = self.model.stages
        # Of the last stages, whose windows cover more of the image.
        usual = stages[-2] if len(stages) > 1 else (stages or [None])[0]
        visible = self.looks
        with gr.Row(visible=visible):
            stage = gr.Radio(
                [(name.removeprefix("stage"), name) for name in stages],
                value=usual,
                label="Attention in stage",
                scale=2,
                min_width=300,
                elem_id="stage",
            )
            heads = head_names(self.model.heads(usual)) if usual else [MEAN]
            head = gr.Dropdown(heads, value=MEAN, label="Head", scale=1, min_width=190, elem_id="head")
        attention = gr.Image(
            label="Attention of the token that was clicked",
            interactive=False,
            visible=visible,
            buttons=["fullscreen", "download"],
            elem_id="attention",
        )
        numbers = gr.Markdown(visible=visible, elem_id="numbers")
        choices = [("all", ALL_MAPS), ("patches", STEM), *((name.removeprefix("stage"), name) for name in stages)]
        chosen_map = gr.Radio(
            choices,
            value=ALL_MAPS,
            label="Feature maps of stage",
            info="Principal components as colours: tokens of one colour are alike.",
            visible=visible,
            elem_id="map",
        )
        maps = gr.HTML(visible=visible, elem_id="maps")
        return stage, head, attention, numbers, chosen_map, maps

    def open_file(self, file: str | None, *choices: Any) -> list[Any]:
        """Shows an uploaded file; the field for files is empty again."""
        return [None, *self._open(Path(file), choices)] if file else [None, *self._nothing("No file was uploaded.")]

    def open_example(self, threshold: float, stage: str, head: str, chosen: str, event: gr.SelectData) -> list[Any]:
        """Shows the example that was clicked."""
        return self._open(self.examples[int(event.index)][0], (threshold, stage, head, chosen))

    def open_first(self, *choices: Any) -> list[Any]:
        """Shows the first example."""
        return self._open(self.examples[0][0], choices)

    def _open(self, path: Path, choices: Sequence[Any]) -> list[Any]:
        """All outputs for an image file; for a broken one, a sentence and nothing else."""
        try:
            shown = self.model.show(path)
        except BrokenImageError as error:
            return self._nothing(f"The image cannot be shown: {error}.")
        except UsageError as error:
            return self._nothing(str(error))
        threshold, stage, head, chosen = choices
        figure, legend = self._draw_found(shown, threshold)
        attention, numbers = self._draw_attention(shown, None, stage, head)
        return [
            path,
            None,
            _hide(),
            enlarge(shown.image),
            shown.labels,
            figure,
            legend,
            attention,
            numbers,
            self._draw_maps(shown, chosen),
        ]

    def _nothing(self, sentence: str) -> list[Any]:
        """All outputs if there is no image: the sentence."""
        return [None, None, _say(sentence), *[None] * 3, "", None, "", ""]

    def _again(self, path: Path | None) -> Shown | None:
        """What is shown of the image of a session; None if it has none, or its file was deleted meanwhile."""
        if path is None:
            return None
        try:
            return self.model.show(path)
        except BrokenImageError:
            return None

    def click(self, path: Path | None, pixel: Pair | None, stage: str, head: str, event: gr.SelectData) -> list[Any]:
        """Draws the attention of the token at a click on the image."""
        shown = self._again(path)
        if shown is None or shown.seen is None:
            return _expired(pixel)
        try:
            factor = factor_of(shown.image.size)
            pixel = pixel_at(shown.seen, (int(event.index[0] // factor), int(event.index[1] // factor)))
        except UsageError as error:
            return [pixel, _say(str(error)), gr.skip(), gr.skip()]
        return [pixel, _hide(), *self._draw_attention(shown, pixel, stage, head)]

    def click_attention(
        self, path: Path | None, pixel: Pair | None, stage: str, head: str, event: gr.SelectData
    ) -> list[Any]:
        """Draws the attention of the token at a click on the figure of attention."""
        shown = self._again(path)
        if shown is None or shown.seen is None:
            return _expired(pixel)
        height, width = shown.seen.view.rgb.shape[:2]
        x, y = (int(position // factor_of((width, height))) for position in event.index)
        pixel = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        return [pixel, _hide(), *self._draw_attention(shown, pixel, stage, head)]

    def choose_stage(self, path: Path | None, pixel: Pair | None, stage: str, head: str) -> list[Any]:
        """Draws the attention in another stage, and offers its heads."""
        names = head_names(self.model.heads(stage))
        head = head if head in names else MEAN
        return [gr.Dropdown(choices=names, value=head), *self.draw_attention(path, pixel, stage, head)]

    def draw_attention(self, path: Path | None, pixel: Pair | None, stage: str, head: str) -> Sequence[Any]:
        """Draws the attention of the token that was clicked."""
        shown = self._again(path)
        return (None, "") if shown is None else self._draw_attention(shown, pixel, stage, head)

    def draw_maps(self, path: Path | None, chosen: str) -> str:
        """Draws feature maps."""
        shown = self._again(path)
        return "" if shown is None else self._draw_maps(shown, chosen)

    def draw_found(self, path: Path | None, threshold: float) -> Sequence[Any]:
        """Draws the objects of another lowest score."""
        shown = self._again(path)
        return (None, "") if shown is None else self._draw_found(shown, threshold)

    def _draw_attention(self, shown: Shown, pixel: Pair | None, stage: str, head: str) -> tuple[Any, str]:
        """The figure of attention and its sentence; nothing for an exported model."""
        return (None, "") if shown.seen is None else draw_attention_of(shown.seen, stage, head, pixel)

    def _draw_maps(self, shown: Shown, chosen: str) -> str:
        """The feature maps; nothing for an exported model."""
        return "" if shown.seen is None else maps_as_html(draw_maps(shown.seen, None if chosen == ALL_MAPS else chosen))

    def _draw_found(self, shown: Shown, threshold: float) -> tuple[Any, str]:
        """What a segmenter or detector found; nothing for other models."""
        if shown.objects is not None:
            return draw_objects_of(shown, self.model.names, threshold)
        return (None, "") if shown.classes is None else draw_classes_of(shown)


def describe(model: PageModel) -> str:
    """What a model does, in sentences."""
    count = len(model.names)
    if model.answers is None:
        does = "A model without a head: it has no labels, only attention and feature maps."
    elif isinstance(model.answers, Segmenter):
        does = f"A segmenter: it finds which of {count:,} classes each pixel has."
    elif isinstance(model.answers, Detector):
        does = f"A detector: it finds objects of {count:,} classes."
    elif model.several_labels:
        does = f"A classifier: an image may have any of {count:,} labels."
    else:
        does = f"A classifier: an image has one of {count:,} labels."
    if model.network is None:
        does += (
            " It is an exported model, which returns labels only; attention and feature maps need the model that it "
            "was exported from."
        )
    return does


def _expired(pixel: Pair | None) -> list[Any]:
    """The outputs of a click on an image that is no longer there."""
    return [pixel, _say("The image was deleted meanwhile. Drop it again."), None, ""]


def _say(sentence: str) -> Any:
    """Shows a sentence about an error. It may quote a file, so nothing in it is markup."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+-!|~$" else letter for letter in sentence)
    return gr.Markdown(escaped, visible=True)


def _hide() -> Any:
    """Hides the sentence about an error."""
    return gr.Markdown("", visible=False)


def _thumbnail(path: Path) -> Image.Image:
    """A small copy of an example."""
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small
