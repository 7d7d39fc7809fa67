"""The figures of the page: attention over the image, feature maps as colours, classes and objects with their legends.

In: what `model` computed. Out: images of PIL, sentences, and the legends as HTML. matplotlib gives the colours.
"""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from swinv2.dense.average_precision import Detections
from swinv2.drawing.overlays import colours_of, mix_classes
from swinv2.inspect.attention_map import TOKEN_COLOUR, WINDOW_COLOUR, TokenAttention, mask_outline, overlay
from swinv2.inspect.components import COMPONENTS, Components, as_colours
from swinv2.lengths import Pair
from swinv2.page.model import STEM, Attentions, Seen, Shown, attention_at
from swinv2.predict.detecting import above, draw_found

SIDE = 768
"""Images whose longer side fits into this number of pixels several times are enlarged by an integer."""

MEAN = "mean of heads"

MOST_LISTED = 30
"""Objects and classes in a legend."""


def head_names(count: int) -> list[str]:
    """The names of the choices of a head: the mean, and each of `count` heads."""
    return [MEAN, *(f"head {number}" for number in range(1, count + 1))]


def draw_attention_of(seen: Seen, stage: str, head: str, pixel: Pair | None) -> tuple[Image.Image, str]:
    """Draws the attention of a token over what the model sees, with the token and the window.

    Args:
        seen: What the model sees.
        stage: "stage1" and so on.
        head: See `head_names`; of a head that the stage does not have, the mean.
        pixel: Row and column in the model's input; None for the centre.

    Returns:
        The figure, and its numbers in a sentence.
    """
    here, attention = seen.attentions[stage], attention_at(seen, stage, pixel)
    names = head_names(here.heads)
    head = head if head in names else MEAN
    weights = attention.weights.mean(0) if head == MEAN else attention.weights[names.index(head) - 1]
    most = float(weights.max())
    colours = overlay(seen.view.rgb, weights, attention.visible, here.token_size, most)
    mixed = enlarge(Image.fromarray(colours), Image.Resampling.NEAREST)
    scale = mixed.width / seen.view.rgb.shape[1]
    _draw_window(mixed, attention, here.token_size, scale)
    return mixed, _describe(attention, here, stage, head, weights)


def _draw_window(drawn: Image.Image, attention: TokenAttention, token_size: Pair, scale: float) -> None:
    """Draws the token in red, and around the tokens that it may attend to a yellow line."""
    draw, thick = ImageDraw.Draw(drawn), max(max(drawn.size) // 200, 2)
    down, across = token_size[0] * scale, token_size[1] * scale
    xs, ys = mask_outline(attention.visible)
    for (start, stop), (top, bottom) in zip((xs * across).T.tolist(), (ys * down).T.tolist(), strict=True):
        draw.line((_kept(start, drawn.width), _kept(top, drawn.height), _kept(stop, drawn.width),
                   _kept(bottom, drawn.height)), WINDOW_COLOUR, thick)  # fmt: skip
    row, column = attention.token
    right, bottom = min((column + 1) * across, drawn.width) - 1, min((row + 1) * down, drawn.height) - 1
    draw.rectangle((column * across, row * down, right, bottom), outline=TOKEN_COLOUR, width=thick)


def _kept(position: float, length: int) -> float:
    """A position of a line, inside of an image: a window may reach beyond it."""
    return min(max(position, 1), length - 2)


def _describe(attention: TokenAttention, here: Attentions, stage: str, head: str, weights: np.ndarray) -> str:
    """The numbers of the attention of a token, in sentences."""
    row, column = attention.token
    (height, width), (down, across) = here.plan.grid, here.plan.window
    shifted = f", shifted by {max(here.plan.shift)}" if any(here.plan.shift) else ""
    hidden = float(attention.on_padding.mean() if head == MEAN else 1 - weights.sum())
    padding = f" {hidden:.0%} of the weight is on padding tokens." if hidden > 0.005 else ""
    return (
        f"Last block of {in_words(stage)}, {head}. Red: the token in row {row + 1} of {height}, column {column + 1} of "
        f"{width}. Yellow: those that it may attend to, in a window of {across} x {down}{shifted}. It gives itself "
        f"{weights[row, column]:.1%} of its attention, and at most {weights.max():.1%} to a token (bright).{padding}"
    )


def in_words(stage: str) -> str:
    """The name of a stage or map, for people.

    Example:

        >>> in_words("stage3"), in_words("stem")
        ('stage 3', 'patch embedding')
    """
    return "patch embedding" if stage == STEM else stage.replace("stage", "stage ")


def draw_maps(seen: Seen, name: str | None = None) -> list[tuple[Image.Image, str]]:
    """Draws feature maps as colours, each with a caption.

    Args:
        seen: What the model sees.
        name: A map: its three components as colours, then one by one; None for all maps as colours.
    """
    if name is None:
        return [(_tokens(seen, key, as_colours(each.scores)), _size_of(key, each)) for key, each in seen.maps.items()]
    components = seen.maps[name]
    drawn = [(_tokens(seen, name, as_colours(components.scores)), _size_of(name, components))]
    for index in range(COMPONENTS):
        scores, share = components.scores[..., index], components.shares[index]
        limit = max(float(np.abs(scores).max()), 1e-12)
        colours = colormaps["RdBu_r"](scores / limit / 2 + 0.5)[..., :3]
        drawn.append((_tokens(seen, name, colours), f"component {index + 1}: {share:.0%} of the variance"))
    return drawn


def maps_as_html(drawn: Sequence[tuple[Image.Image, str]]) -> str:
    """Figures with their captions as HTML, the images inside of it."""
    parts: list[str] = []
    for image, caption in drawn:
        file = BytesIO()
        image.save(file, "PNG")
        source = f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
        text = escape(caption)
        parts.append(f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>')
    return f'<div class="maps">{"".join(parts)}</div>'


def _size_of(name: str, components: Components) -> str:
    """The name and size of a map."""
    height, width = components.scores.shape[:2]
    return f"{in_words(name)}: {width} x {height} tokens, {components.channels} channels"


def _tokens(seen: Seen, name: str, colours: np.ndarray) -> Image.Image:
    """Colours (H, W, 3) from 0 to 1 of a map's tokens, enlarged and cut as the image that they are from."""
    height, width = seen.view.rgb.shape[:2]
    # The map of the patch embedding has the tokens of stage 1.
    down, across = seen.attentions["stage1" if name == STEM else name].token_size
    image = Image.fromarray((255 * colours).round().astype(np.uint8))
    scale = SIDE / 2 / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return image.resize(size, Image.Resampling.NEAREST, (0, 0, width / across, height / down))


def factor_of(size: tuple[int, int]) -> int:
    """The integer by which an image (width, height) is enlarged, see `SIDE`."""
    return max(SIDE // max(size), 1)


def enlarge(image: Image.Image, how: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """An image enlarged by `factor_of` it: Gradio shows no image larger than it is, and counts clicks in its pixels."""
    factor = factor_of(image.size)
    return image if factor == 1 else image.resize((image.width * factor, image.height * factor), how)


def draw_classes_of(shown: Shown) -> tuple[Image.Image, str]:
    """Draws the classes over an image that a segmenter answered for, and their legend as HTML."""
    assert shown.classes is not None
    rows = [(each.index, each.label, f"{each.share:.1%}") for each in shown.shares]
    return mix_classes(np.array(shown.image), shown.classes), legend_of(rows, "classes")


def draw_objects_of(shown: Shown, names: Sequence[str], threshold: float) -> tuple[Image.Image, str]:
    """Draws the objects of at least a score over an image that a detector answered for, and lists them as HTML."""
    assert shown.objects is not None
    found: Detections = above(shown.objects, threshold)
    pairs = zip(np.asarray(found.labels).tolist(), np.asarray(found.scores).tolist(), strict=True)
    rows = [(int(label), names[int(label)], f"{score:.0%}") for label, score in pairs]
    return draw_found(np.array(shown.image), found, names), legend_of(rows, "objects")


def legend_of(rows: Sequence[tuple[int, str, str]], what: str) -> str:
    """A legend as HTML: for each row the colour of its class, its name and its number.

    Args:
        rows: Class, name and number.
        what: The rows in a word, for the sentence about those that are left out.
    """
    if not rows:
        return f"<p>No {escape(what)} found.</p>"
    items = "".join(
        f'<li><span class="swatch" style="background:rgb({",".join(map(str, colours_of(index).tolist()))})"></span>'
        f"{escape(name)} <b>{escape(number)}</b></li>"
        for index, name, number in rows[:MOST_LISTED]
    )
    more = f"<p>and {len(rows) - MOST_LISTED} more {escape(what)}</p>" if len(rows) > MOST_LISTED else ""
    return f'<ul class="legend">{items}</ul>{more}'
