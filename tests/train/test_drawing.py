"""Images of a training: the right pixels and points in them, and files that are whole or not there."""

import os

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from swinv2.drawing import paper
from swinv2.simmim import normalise_targets
from swinv2.train.data.augment import Pixels
from swinv2.train.drawing import confusion, curves, mistakes, precisions, reconstructions
from swinv2.train.drawing.mistakes import Mistake

COLOURS = Pixels((32, 32), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
RED, BLUE = (204, 26, 51), (26, 51, 230)


def plain(colour, pixels=COLOURS, size=(32, 32)):
    """A normalised image of one colour."""
    values = torch.tensor(colour) / 255
    values = (values - torch.tensor(pixels.mean)) / torch.tensor(pixels.std)
    return values.view(1, -1, 1, 1).expand(1, -1, *size).clone()


def left_half(size=(32, 32)):
    mask = torch.zeros(1, 1, *size, dtype=torch.bool)
    mask[..., : size[1] // 2] = True
    return mask


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(image, colour):
    return int((image == np.array(colour, np.uint8)).all(-1).sum())


def where(image, colour):
    """The box (top, bottom, left, right) around all pixels of a colour."""
    rows, columns = np.nonzero((image == np.array(colour, np.uint8)).all(-1))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


# Curves


def log_of(steps, **rest):
    return [{"step": 10 * (i + 1), "epoch": (i + 1) / 4, "loss": 2.0 / (i + 1), **rest} for i in range(steps)]


def test_only_panels_with_data(tmp_path):
    history = [*log_of(3), {"step": 30, "epoch": 0.75, "train_runtime": 3.0, "avg_distance": 3.2}]
    against, panels = curves.curves(history)
    assert against == "epoch"
    assert {panel: list(series) for panel, series in panels.items()} == {"loss": ["loss"]}
    assert panels["loss"]["loss"].tolist() == [[0.25, 2.0], [0.5, 1.0], [0.75, 2.0 / 3]]
    history += log_of(2, learning_rate=1e-3, grad_norm=1.5)
    history += [{"step": 50, "epoch": 1.0, "eval_loss": 0.5, "eval_top1": 0.75, "eval_top5": 1.0}]
    against, panels = curves.curves(history)
    assert list(panels) == ["loss", "accuracy in %", "learning rate", "gradient norm"]
    assert panels["accuracy in %"]["eval_top1"].tolist() == [[1.0, 75.0]]
    axes = curves._figure_of_curves(against, panels, "").axes
    assert [panel.get_ylabel() for panel in axes] == list(panels)
    assert [panel.get_yscale() for panel in axes] == ["linear", "linear", "linear", "log"]
    assert axes[-1].get_xlabel() == "epoch"
    curves.draw_curves(log_of(3), tmp_path / "one.png")
    curves.draw_curves(history, tmp_path / "four.png", "a run of $many_steps$")
    one, four = read(tmp_path / "one.png"), read(tmp_path / "four.png")
    assert one.shape[1] == four.shape[1] > 800
    assert four.shape[0] > 2 * one.shape[0] > 600
    assert len(np.unique(one.reshape(-1, 3), axis=0)) > 10


def test_what_is_no_number_is_skipped(tmp_path):
    history = log_of(4, grad_norm=2.0)
    history[1]["loss"], history[2]["loss"] = float("nan"), float("inf")
    history[0]["grad_norm"], history[3]["grad_norm"] = 0.0, None
    panels = curves.curves(history)[1]
    assert panels["loss"]["loss"][:, 0].tolist() == [0.25, 1.0]
    assert panels["gradient norm"]["grad_norm"].tolist() == [[0.5, 2.0], [0.75, 2.0]]
    curves.draw_curves(history, tmp_path / "curves.png")
    assert read(tmp_path / "curves.png").size


def test_steps_where_an_epoch_is_missing():
    history = log_of(2)
    del history[0]["epoch"]
    against, panels = curves.curves(history)
    assert against == "step"
    assert panels["loss"]["loss"][:, 0].tolist() == [10.0, 20.0]


@pytest.mark.parametrize(
    "history", [[], [{"step": 1, "loss": float("nan")}], [{"step": 3, "train_runtime": 1.0}], [{"loss": 1.0}]]
)
def test_nothing_to_draw(history, tmp_path):
    with pytest.raises(ValueError, match=rf"{len(history)} entries.*expected entries with 'step'.*eval_loss"):
        curves.draw_curves(history, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("points", "lines"), [(curves.MANY_POINTS, 1), (curves.MANY_POINTS + 1, 2)])
def test_many_points_are_smoothed(points, lines):
    loss = curves._figure_of_curves(*curves.curves(log_of(points)), "").axes[0]
    assert len(loss.lines) == lines
    assert len(loss.get_legend().get_texts()) == lines


def test_smoothing():
    line = np.arange(50.0)
    assert np.allclose(curves.smoothed(line, 9)[:46], line[:46])
    noise = np.random.default_rng(0).normal(size=1000)
    smooth = curves.smoothed(noise, 25)
    assert smooth[20:].std() < 0.35 * noise.std()
    assert smooth[500] == pytest.approx(noise[488:513].mean())
    assert smooth[-1] == pytest.approx(noise[-13:].mean())


# What a model draws


def test_rows_of_reconstructions():
    rows = reconstructions.reconstruction_rows(plain(RED), plain(BLUE), left_half(), COLOURS)
    assert rows.shape == (1, 4, 32, 32, 3)
    assert rows.dtype == np.uint8
    image, masked, pasted, drawn = rows[0]
    assert (image == RED).all()
    assert (masked[:, :16] == 128).all()
    assert (masked[:, 16:] == RED).all()
    assert (pasted[:, :16] == BLUE).all()
    assert (pasted[:, 16:] == RED).all()
    assert (drawn == BLUE).all()


def test_normalised_targets_are_undone():
    draw = np.random.default_rng(0)
    dataset = draw.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images = torch.from_numpy(dataset).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(COLOURS.mean).view(-1, 1, 1)) / torch.tensor(COLOURS.std).view(-1, 1, 1)
    mask = left_half().expand(2, -1, -1, -1)
    targets = normalise_targets(images, 7)
    rows = reconstructions.reconstruction_rows(images, targets, mask, COLOURS, norm_targets=7)
    assert np.array_equal(rows[:, 0], dataset)
    # A perfect drawing is the image.
    assert np.abs(rows[:, 3].astype(int) - dataset).max() <= 1
    raw = reconstructions.reconstruction_rows(images, targets, mask, COLOURS)
    assert np.abs(raw[:, 3].astype(int) - dataset).max() > 50


def test_values_beyond_black_and_white_and_none():
    drawn = torch.full((1, 3, 32, 32), 99.0)
    drawn[:, :, 1], drawn[:, :, 2] = -99.0, torch.nan
    drawn = reconstructions.reconstruction_rows(plain(RED), drawn.bfloat16().requires_grad_(), left_half(), COLOURS)[
        0, 3
    ]
    assert (drawn[0] == 255).all()
    assert (drawn[1:3] == 0).all()


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, (10, 10, 10)), (2, (10, 10, 10)), (3, (10, 20, 30)), (5, (10, 20, 30))]
)
def test_channels(channels, shown):
    pixels = Pixels((8, 8), (0.5, 0.25, 0.1, 0.2, 0.3)[:channels], (0.2, 0.1, 0.3, 0.4, 0.5)[:channels])
    images = plain((10, 20, 30, 40, 50)[:channels], pixels, (8, 8))
    rows = reconstructions.reconstruction_rows(images, images, left_half((8, 8)), pixels)
    assert (rows[0, 0] == shown).all()


def test_grid_of_reconstructions(tmp_path):
    images = torch.cat([plain(RED), plain(RED)])
    mask = torch.cat([left_half(), torch.zeros(1, 1, 32, 32, dtype=torch.bool)])
    path = tmp_path / "folder" / "below" / "grid.png"
    reconstructions.draw_reconstructions(
        images, torch.cat([plain(BLUE)] * 2), mask, path, COLOURS, names=["one", "two"]
    )
    grid = read(path)
    # Six times as large: the first column is red, the second and third half of it, and of the second row all of them.
    tile = 192 * 192
    assert count(grid, RED) == 5 * tile
    assert count(grid, BLUE) == 2.5 * tile
    assert count(grid, (128, 128, 128)) == pytest.approx(tile / 2, abs=100)
    top, bottom, left, right = where(grid[:, : grid.shape[1] // 4 + 4], RED)
    assert right - left == 192
    assert bottom - top > 2 * 192
    assert (grid[top : top + 192, left : left + 192] == RED).all()
    # Beside it the masked image: grey on the left.
    second = grid[top : top + 192, left + 192 + 16 : left + 2 * 192 + 16]
    assert (second[:, :96] == 128).all()
    assert (second[:, 96:] == RED).all()
    bare = tmp_path / "bare.png"
    reconstructions.draw_reconstructions(images, images, mask, bare, COLOURS)
    assert read(bare).shape[0] < grid.shape[0]


def test_large_and_long_images_keep_their_pixels(tmp_path):
    reconstructions.draw_reconstructions(
        plain(RED, size=(40, 256)), plain(BLUE, size=(40, 256)), left_half((40, 256)), tmp_path / "grid.png", COLOURS
    )
    assert count(read(tmp_path / "grid.png"), RED) == 2 * 40 * 256


def test_shapes_that_do_not_belong_together(tmp_path):
    image, mask, path = plain(RED), left_half(), tmp_path / "grid.png"
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        reconstructions.draw_reconstructions(image[:, :2], image[:, :2], mask, path, COLOURS)
    with pytest.raises(ValueError, match=r"reconstruction is \(1, 3, 16, 32\)"):
        reconstructions.draw_reconstructions(image, image[:, :, :16], mask, path, COLOURS)
    with pytest.raises(ValueError, match=r"mask is \(1, 1, 32, 32\) of torch.float32"):
        reconstructions.draw_reconstructions(image, image, mask.float(), path, COLOURS)
    with pytest.raises(ValueError, match="2 names for 1 images"):
        reconstructions.draw_reconstructions(image, image, mask, path, COLOURS, names=["one", "two"])
    assert not path.exists()


# Where a classifier errs


def words(figure):
    axes = figure.axes[0]
    return [text.get_text() for text in axes.texts], [label.get_text() for label in axes.get_yticklabels()]


def answers_of(matrix):
    """Truths and answers with this confusion matrix."""
    return np.repeat(np.indices(matrix.shape).reshape(2, -1), matrix.astype(int).ravel(), axis=1)


def test_numbers_of_a_small_matrix(tmp_path):
    matrix = np.array([[90, 10, 0], [1, 399, 0], [0, 0, 0]])
    figure = confusion._figure_of_confusion(*answers_of(matrix), ["a", "b", "c"], "images")
    cells, classes = words(figure)
    assert cells == ["90", "10", "<1", "100"]
    assert classes == ["a", "b", "c"]
    wrong, right = (image.get_array() for image in figure.axes[0].images)
    assert wrong[0, 1] == 0.1
    assert wrong[0].mask.tolist() == [True, False, False]
    assert right[1, 1] == 399 / 400
    assert wrong[2].mask.all()
    assert right[2].mask.all()
    confusion.draw_confusion(*answers_of(matrix), ["a", "$b_$", "猫\ud800"], tmp_path / "matrix.png")
    image = read(tmp_path / "matrix.png")
    assert min(image.shape[:2]) > 400
    # Three cells of a class without images.
    assert count(image, (0xDD, 0xDD, 0xDD)) > 3 * 50 * 50


def test_recall_beside_the_names_of_more_classes():
    cells, classes = words(
        confusion._figure_of_confusion(*answers_of(np.eye(21) * 3 + 1), [f"class {i}" for i in range(21)], "images")
    )
    assert cells == []
    assert classes[20] == "class 20  17%"


def test_the_worst_of_many_classes() -> None:
    """Those of lowest recall, in the order of the classes; what they were taken for beyond them is not drawn."""
    matrix = np.eye(60) * 10
    matrix[7] = 0
    matrix[59, [3, 59]] = [6, 4]
    matrix[3, [3, 59]] = [5, 5]
    figure = confusion._figure_of_confusion(*answers_of(matrix), [f"class {i}" for i in range(60)], "videos")
    _, classes = words(figure)
    assert len(classes) == 50
    assert classes[3] == "class 3  50%"
    assert classes[-1] == "class 59  40%"
    assert not any(name.startswith("class 7 ") or name == "class 7" for name in classes)
    wrong = figure.axes[0].images[0].get_array()
    assert (wrong[-1, 3], wrong[3, -1]) == (0.6, 0.5)
    assert "videos right; the 50 classes of 60" in figure.axes[0].get_title()


@pytest.mark.parametrize("classes", [1, 20, 21, 50, 51, 200])
def test_matrices_of_all_sizes(classes, tmp_path):
    path = tmp_path / "matrix.png"
    confusion.draw_confusion(*answers_of(np.eye(classes)), [f"class number {i}" for i in range(classes)], path)
    image = read(path)
    assert 300 < min(image.shape[:2]) <= max(image.shape[:2]) < 3000
    # No name is cut off.
    for edge in (image[:8], image[-8:], image[:, :8], image[:, -8:]):
        assert (edge == 255).all()


def test_what_is_no_confusion_matrix(tmp_path):
    path = tmp_path / "matrix.png"
    for truths, answers in (([], []), ([0, 1], [0])):
        with pytest.raises(ValueError, match=f"{len(truths)} images and {len(answers)} answers"):
            confusion.draw_confusion(np.array(truths, int), np.array(answers, int), ["a", "b"], path)
    for truths, answers, wrong in (([0, 1], [0, 0], "0 to 1"), ([0, 0], [0, -1], "-1 to 0")):
        with pytest.raises(ValueError, match=f"classes from {wrong}, and 1 names"):
            confusion.draw_confusion(np.array(truths), np.array(answers), ["a"], path)
    assert not path.exists()


def test_average_precisions(tmp_path):
    figure = precisions._figure_of_precisions(np.array([0.25, np.nan, 1.0]), ["ant", "bee", "cat"])
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "cat"]
    assert [bar.get_width() for bar in axes.patches] == [0.25, 1.0]
    assert axes.get_title() == "mean average precision 62.5%"
    precisions.draw_average_precisions(np.array([0.25, 1.0]), ["a $x$", "_"], tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 1000


def test_the_lowest_average_precisions_of_many():
    values = np.linspace(1, 0, 60)
    figure = precisions._figure_of_precisions(values, [str(index) for index in range(60)])
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == sorted(values)[:50]
    assert axes.get_title() == "mean average precision 50.0%; the worst 50 of 60 classes"


@pytest.mark.parametrize(("values", "names"), [([0.5], ["a", "b"]), ([np.nan], ["a"])])
def test_no_average_precisions(values, names, tmp_path):
    with pytest.raises(ValueError, match="expected one each, not all NaN"):
        precisions.draw_average_precisions(np.array(values), names, tmp_path / "drawn.png")


def mistake(colour, size=(32, 32), truth="cat", answer="dog"):
    return Mistake(np.full((*size, 3), colour, np.uint8), truth, answer, 0.971)


def test_mistakes_in_their_order(tmp_path, monkeypatch):
    written = []
    write = paper.Sheet.write
    monkeypatch.setattr(
        paper.Sheet,
        "write",
        lambda sheet, left, top, text, **rest: written.append(text) or write(sheet, left, top, text, **rest),
    )
    path = tmp_path / "mistakes.png"
    colours = [(9 * i, 255 - 9 * i, 77) for i in range(27)]
    drawn = [mistake(colour)._replace(file=f"{index}.png") for index, colour in enumerate(colours)]
    mistakes.draw_mistakes(drawn, path)
    assert written == [line for index in range(25) for line in ("cat -> dog 97%", f"{index}.png")]
    image = read(path)
    boxes = [where(image, colour) for colour in colours[:25]]
    assert boxes == sorted(boxes)
    assert [count(image, colour) for colour in colours] == [192 * 192] * 25 + [0, 0]
    tops, lefts = ({box[index] for box in boxes} for index in (0, 2))
    assert len(tops) == len(lefts) == 5


def test_mistakes_of_all_sizes(tmp_path):
    path = tmp_path / "mistakes.png"
    long = "a name that is longer than anybody would want to read"
    mistakes.draw_mistakes([mistake(RED, (400, 200)), mistake(BLUE, (20, 90), long, long)], path)
    image = read(path)
    assert count(image, RED) == 192 * 96
    assert count(image, BLUE) == 40 * 180


def test_no_mistakes(tmp_path):
    with pytest.raises(ValueError, match="no mistake to draw"):
        mistakes.draw_mistakes([], tmp_path / "mistakes.png")
    with pytest.raises(ValueError, match=r"\(32, 32, 3\) of float64"):
        mistakes.draw_mistakes([Mistake(np.zeros((32, 32, 3)), "cat", "dog", 0.5)], tmp_path / "mistakes.png")
    assert not list(tmp_path.iterdir())


# Files

WRITERS = {
    "curves": lambda path: curves.draw_curves(log_of(3), path),
    "reconstructions": lambda path: reconstructions.draw_reconstructions(
        plain(RED), plain(RED), left_half(), path, COLOURS
    ),
    "confusion": lambda path: confusion.draw_confusion(*answers_of(np.eye(3)), "abc", path),
    "mistakes": lambda path: mistakes.draw_mistakes([mistake(RED)], path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_files_are_whole_or_not_there(writer, tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "picture.png"
    WRITERS[writer](path)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    path.write_bytes(b"an old file")
    WRITERS[writer](path)
    assert path.read_bytes() == first

    def fill_the_disk(canvas, file, **rest):
        file.write(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[writer](path)
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == ["picture.png"]
