"""`scripts/ship_backbone.py`: the files that a trained model becomes, and its card."""

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from small_models import make_model
from swinv2 import Swinv2ForImageClassification
from swinv2.errors import UsageError
from swinv2.predict import shipped

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    import ship_backbone

    yield ship_backbone
    for name in ("ship_backbone", "tiny_imagenet"):
        sys.modules.pop(name)


@pytest.fixture
def run(script: Any, tmp_path: Path) -> Path:
    """A trained model of the 200 classes."""
    names = dict(enumerate(script.CLASSES.values()))
    return make_model(tmp_path / "final", id2label=names, label2id={name: index for index, name in names.items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_labels_and_types(script: Any, run: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """16 bits in the file, float32 in the memory, and the names of the trained model."""
    folder = tmp_path / "shipped"
    script.write_model(run, folder, dtype)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {dtype}
    assert (folder / "model.safetensors").stat().st_mode & stat.S_IROTH
    before, after = (Swinv2ForImageClassification.from_pretrained(path) for path in (run, folder))
    assert after.dtype == torch.float32
    assert [after.config.id2label[index] for index in (30, 78)] == ["tabby cat", "plaque"]
    assert after.config.label2id["plaque"] == 78
    for ours, theirs in zip(after.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-8, atol=1e-6)


def test_other_labels_are_an_error(script: Any, run: Path, tmp_path: Path) -> None:
    """Fewer of them, in another order, or a single other one."""
    config = json.loads((run / "config.json").read_text())
    names = list(config["id2label"].values())
    for wrong in (names[:10], names[::-1], [*names[:30], "tabby", *names[31:]], [*names, "dragon"]):
        config["id2label"] = {str(index): name for index, name in enumerate(wrong)}
        (run / "config.json").write_text(json.dumps(config))
        with pytest.raises(SystemExit, match="expected the 200"):
            script.write_model(run, tmp_path / "shipped", torch.float16)


def test_what_cannot_be_measured_is_not_shipped(
    script: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that was shipped before stays as it was."""
    monkeypatch.setattr(script, "FOLDER", tmp_path / "shipped")
    with pytest.raises(UsageError, match="nowhere"):
        script.main(run, str(tmp_path / "nowhere"), "One core took an hour.", None, "float16")
    assert not (tmp_path / "shipped").exists()


def test_the_card_has_what_was_measured(
    script: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three types of weights, three image sizes, and the photographs, which stay."""
    folder, data = tmp_path / "shipped", tmp_path / "data" / "validation"
    (folder / "samples").mkdir(parents=True)
    Image.new("RGB", (200, 200)).save(folder / "samples" / "a.jpg")
    (folder / "samples" / "photographs.csv").write_text(
        'file,shows,label,source,author,licence\na.jpg,darkness,,"somewhere, a.jpg",somebody,MIT\n'
    )
    for name in ("goldfish", "plaque"):
        (data / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(data / name / "a.png")
    monkeypatch.setattr(shipped, "FOLDER", folder)
    monkeypatch.setattr(script, "FOLDER", folder)
    script.main(run, str(data.parent), "One core took an hour.", None, "bfloat16")
    card = (folder / "README.md").read_text()
    assert "2 validation images" in card
    assert sum(line.startswith(("| 96 px |", "| 128 px |")) for line in card.splitlines()) == 2
    assert "float32 0.00%, bfloat16 0.00%, float16 0.00% top-1" in card
    assert "One core took an hour." in card
    assert "| `a.jpg` | darkness | - |" in card
    assert "0 of 0 are right" in card
    assert (folder / "samples" / "a.jpg").is_file()
