"""Damaged, foreign and hostile files: a sentence, nothing written, nothing run."""

import errno
import json
import os
import pickle
import random
import resource
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import foreign
from foreign import small_sizes
from swinv2.convert import convert, write
from swinv2.convert.files import open_weights
from swinv2.errors import UsageError

File = dict[str, Tensor]
BLOCK = "layers.0.blocks.1."


@pytest.fixture(scope="module")
def sound() -> File:
    """A sound file of the authors'."""
    return foreign.microsoft_file(small_sizes(window_size=4, pretrained=(3, 3)))


@pytest.fixture
def file(sound: File) -> File:
    """The same, to be damaged."""
    return {name: tensor.clone() for name, tensor in sound.items()}


@pytest.fixture
def run_code(tmp_path: Path) -> Iterator[Path]:
    """What hostile files try to make; it is never there."""
    made = tmp_path / "code-was-run"
    yield made
    assert not made.exists()


class Hostile:
    """Opened by pickle, it makes a folder."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def refused(source: Path | str, tmp_path: Path, **arguments: Any) -> str:
    """Converts, which is refused with one sentence or two, and leaves everything as it was."""
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError) as caught:
        convert(str(source), tmp_path / "out", **arguments)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", ".)"))
    return sentence


def saved(content: Any, tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return path


def test_the_sound_file_is_taken(file: File, tmp_path: Path) -> None:
    """Or every test below would pass for another reason."""
    convert(str(saved({"model": file}, tmp_path)), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert not list(tmp_path.glob(".unfinished-*"))


# --- what is wrong with the tensors -----------------------------------------------------------------------------------

Damage = Callable[[File], object]


def leave_out(name: str) -> Damage:
    return lambda file: file.pop(name)


def put(name: str, tensor: Tensor) -> Damage:
    return lambda file: file.__setitem__(name, tensor)


def fill(name: str, value: float) -> Damage:
    return lambda file: file[name].view(-1)[-1:].fill_(value)


def cast(name: str, dtype: torch.dtype) -> Damage:
    return lambda file: file.__setitem__(name, file[name].to(dtype))


TENSORS = {
    "missing-matrix": (leave_out(f"{BLOCK}attn.qkv.weight"), f"missing: {BLOCK}attn.qkv.weight"),
    "missing-first": (leave_out("patch_embed.proj.weight"), "missing: patch_embed.proj.weight"),
    "missing-last": (leave_out("norm.bias"), "missing: norm.bias"),
    "missing-head-bias": (leave_out("head.bias"), "missing: head.bias"),
    "extra": (put("extra.weight", torch.ones(2)), "unknown: extra.weight"),
    "extra-norm-of-a-map": (put("norm0.weight", torch.ones(16)), "unknown: norm0.weight"),
    "extra-merging": (put("layers.1.downsample.norm.bias", torch.ones(64)), "unknown: layers.1.downsample.norm.bias"),
    "under-two-names": (
        put(f"{BLOCK}attn.rpe_mlp.0.bias", torch.ones(512)),
        f"under two names: {BLOCK}attn.rpe_mlp.0.bias",
    ),
    "wrong-shape": (put(f"{BLOCK}norm1.weight", torch.ones(17)), f"{BLOCK}norm1.weight ([17], expected [16])"),
    "wrong-rank": (put(f"{BLOCK}attn.qkv.weight", torch.ones(7)), f"{BLOCK}attn.qkv.weight ([7] is not three parts"),
    "wrong-heads": (put(f"{BLOCK}attn.logit_scale", torch.ones(3, 1, 1)), f"{BLOCK}attn.logit_scale ([3, 1, 1]"),
    "nan": (
        fill(f"{BLOCK}mlp.fc1.weight", float("nan")),
        f"not finite numbers (NaN or infinite): {BLOCK}mlp.fc1.weight",
    ),
    "infinite": (fill("head.weight", float("inf")), "not finite numbers (NaN or infinite): head.weight"),
    "integers": (cast("norm.weight", torch.int64), "norm.weight (torch.int64)"),
    "complex": (cast("norm.weight", torch.complex64), "norm.weight (torch.complex64)"),
    "eight-bits": (cast("head.weight", torch.float8_e4m3fn), "head.weight (torch.float8_e4m3fn)"),
    "no-numbers": (put("norm.weight", torch.ones(32, device="meta")), "norm.weight (a shape without numbers)"),
    "sparse": (
        lambda file: put("head.weight", file["head.weight"].to_sparse())(file),
        "head.weight (sparse or quantised)",
    ),
    "expanded": (
        lambda file: put("head.weight", torch.ones(1).expand(5, 32))(file),
        "head.weight (more numbers than the file has: one stands for several)",
    ),
    "name-with-a-new-line": (put("first\nsecond\x1b[31m", torch.ones(2)), r"not plain: 'first\nsecond\x1b[31m'"),
    "tampered-coordinates": (
        fill(f"{BLOCK}attn.relative_coords_table", 0.5),
        f"{BLOCK}attn.relative_coords_table is not the coordinates",
    ),
    "tampered-pairs": (
        fill(f"{BLOCK}attn.relative_position_index", 3),
        f"{BLOCK}attn.relative_position_index is not the table of pairs",
    ),
    "tampered-mask": (fill(f"{BLOCK}attn_mask", -1), f"{BLOCK}attn_mask is not made of 0 and -100"),
    "mask-of-zeros": (lambda file: file[f"{BLOCK}attn_mask"].zero_(), f"{BLOCK}attn_mask is not the mask of windows"),
    "mask-all-hidden": (
        lambda file: file[f"{BLOCK}attn_mask"].fill_(-100),
        f"{BLOCK}attn_mask is not the mask of windows of 4 x 4 shifted by 2 x 2",
    ),
    "mask-flipped": (
        lambda file: file[f"{BLOCK}attn_mask"].copy_(file[f"{BLOCK}attn_mask"].flip(0)),
        f"{BLOCK}attn_mask is not the mask of windows",
    ),
    "mask-on-an-even-block": (
        lambda file: put("layers.0.blocks.0.attn_mask", file[f"{BLOCK}attn_mask"].clone())(file),
        "layers.0.blocks.0.attn_mask is a mask on a block that is not shifted",
    ),
    "mask-missing-in-one-stage": (
        leave_out("layers.1.blocks.1.attn_mask"),
        "none in block 1 of stage 2, counted from 0",
    ),
    "mask-of-another-size": (
        put(f"{BLOCK}attn_mask", foreign.regions(8, 4, 2)),
        "stage 2",
    ),
    "blocks-disagree": (
        put(f"{BLOCK}attn.relative_coords_table", foreign.coordinates(4, 2)),
        "the blocks of stage 1 disagree about their pre-training window: [(2, 2), (3, 3)]",
    ),
    "first-version": (
        put(f"{BLOCK}attn.relative_position_bias_table", torch.ones(49, 2)),
        "Swin Transformer in its first version",
    ),
    "huge-number": (
        put("layers.0.blocks.9999999999.norm1.weight", torch.ones(16)),
        "unknown: layers.0.blocks.9999999999",
    ),
}


@pytest.mark.parametrize(("damage", "expected"), TENSORS.values(), ids=TENSORS)
def test_tensors(damage: Damage, expected: str, file: File, tmp_path: Path) -> None:
    damage(file)
    assert expected in refused(saved({"model": file}, tmp_path), tmp_path)


def test_everything_that_does_not_fit_is_in_one_error(file: File, tmp_path: Path) -> None:
    for name in ("norm.bias", f"{BLOCK}attn.q_bias"):
        del file[name]
    file |= {"first.extra": torch.ones(1), "second.extra": torch.ones(1), "head.bias": torch.ones(4)}
    sentence = refused(saved({"model": file}, tmp_path), tmp_path)
    for part in ("norm.bias", f"{BLOCK}attn.q_bias", "first.extra", "second.extra", "head.bias ([4], expected [5])"):
        assert part in sentence


@pytest.mark.parametrize(
    "first",
    ["patch_embed.proj.weight", "layers.1.blocks.{0,1}.attn.logit_scale", "layers.0.blocks.{0,1}.mlp.fc1.weight"],
)
def test_it_is_one_error_too_where_sizes_are_missing(first: str, file: File, tmp_path: Path) -> None:
    """Even the tensors that show the sizes may be among them."""
    missing = [first.replace("{0,1}", block) for block in ("0", "1")]
    missing += ["norm.bias", f"{BLOCK}attn.q_bias", f"{BLOCK}attn.qkv.weight", "layers.0.downsample.reduction.weight"]
    for name in dict.fromkeys(missing):
        del file[name]
    file["extra"] = torch.ones(1)
    sentence = refused(saved({"model": file}, tmp_path), tmp_path)
    named = sentence.partition("missing: ")[2].partition(";")[0].split(", ")
    assert sorted(named) == sorted(set(missing))
    assert "unknown: extra" in sentence


def test_a_size_of_another_rank(file: File, tmp_path: Path) -> None:
    """It is there, so it is not called missing."""
    file["patch_embed.proj.weight"] = torch.ones(16, 48)
    sentence = refused(saved({"model": file}, tmp_path), tmp_path)
    assert "patch_embed.proj.weight ([16, 48], expected 4 lengths)" in sentence
    assert "missing" not in sentence


@pytest.mark.parametrize(
    "stray",
    [
        "layers.0.blocks.3000.norm1.weight",
        "layers.9999.blocks.0.norm1.weight",
        "layers.3.blocks.0.norm1.weight",
        "layers.0.blocks.2.attn.relative_coords_table",
        "layers.70.blocks.0.attn_mask",
    ],
)
def test_blocks_with_numbers_of_their_own(
    stray: str, file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named, and nothing is built for the numbers between."""
    file[stray] = torch.ones(16)
    monkeypatch.setattr("swinv2.convert.network.Swinv2Config", Mock(side_effect=AssertionError))
    sentence = refused(saved({"model": file}, tmp_path), tmp_path)
    assert f"without a gap: {stray} belongs to none of the 4 blocks" in sentence


def test_more_stages_than_any_network_has(file: File, tmp_path: Path) -> None:
    for stage in range(2, 70):
        file[f"layers.{stage}.blocks.0.norm1.weight"] = torch.ones(16)
    assert "layers.69.blocks.0.norm1.weight belong to none" in refused(saved({"model": file}, tmp_path), tmp_path)


def test_a_key_bias_that_is_not_zero(tmp_path: Path) -> None:
    """timm's and transformers' keys have none; a file that has one is of another network."""
    file = foreign.timm_network(small_sizes()).state_dict()
    arguments = {"trained_image_size": 64, "trained_window_size": 4}
    file["layers.0.blocks.0.attn.k_bias"] = torch.zeros(16)
    convert(str(saved(file, tmp_path)), None, **arguments)
    file["layers.0.blocks.0.attn.k_bias"][3] = 1e-3
    sentence = refused(saved(file, tmp_path), tmp_path, **arguments)
    assert "layers.0.blocks.0.attn.k_bias is not zero" in sentence


# --- what is wrong with the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.7, 0.99, 0.9999])
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "legacy.pth"])
def test_cut_off(suffix: str, share: float, file: File, tmp_path: Path) -> None:
    """At any byte, in torch's archive, its older form, and safetensors."""
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(file, path)
    else:
        torch.save({"model": file}, path, _use_new_zipfile_serialization=suffix == "pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "weights" in refused(path, tmp_path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "legacy.pth"])
def test_cut_off_at_every_byte(suffix: str, tmp_path: Path) -> None:
    """Of a small file, and with random bytes at random places in another run: never another error."""
    path, draw = tmp_path / f"weights.{suffix}", random.Random(0)
    tensors = {"first": torch.ones(2, 3), "second": torch.zeros(5)}
    if suffix == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=suffix == "pth")
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UsageError):
            open_weights(path)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 8)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        with suppress(UsageError):
            open_weights(path)


def test_an_archive_that_is_compressed(file: File, tmp_path: Path) -> None:
    """torch's are not; a small one that is, may hold more than the memory does."""
    path = saved({"model": file}, tmp_path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert "something in it is compressed" in refused(path, tmp_path)


def test_one_bit_of_a_matrix(file: File, tmp_path: Path) -> None:
    """torch itself does not notice it: the number stays finite, and only the checksum tells."""
    path = saved({"model": file}, tmp_path)
    content = bytearray(path.read_bytes())
    place = content.find(file["head.weight"].numpy().tobytes())
    assert place > 0
    content[place + 2] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["head.weight"], file["head.weight"])
    assert "does not have its checksum" in refused(path, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"GIF89a" + b"\x00" * 50, b"PK\x03\x04 and no more", b"\x80"])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    """Empty, zeros, a picture, an archive that is none, a pickle that is none."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert str(path) in refused(path, tmp_path)


def test_an_archive_that_torch_did_not_write(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing")
    assert "cut off or damaged" in refused(path, tmp_path)


def test_a_program_in_torchs_archive(tmp_path: Path) -> None:
    """TorchScript is code."""
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", pickle.dumps(()))
        archive.writestr("model/data.pkl", pickle.dumps({}))
        archive.writestr("model/version", "3")
    assert str(path) in refused(path, tmp_path)


@pytest.mark.parametrize("older", [False, True], ids=["archive", "older-form"])
def test_code_in_a_pickle(older: bool, file: File, run_code: Path, tmp_path: Path) -> None:
    """It is named, and it does not run."""
    path = tmp_path / "weights.pth"
    torch.save({"model": file, "config": Hostile(run_code)}, path, _use_new_zipfile_serialization=not older)
    sentence = refused(path, tmp_path)
    assert "posix.mkdir" in sentence
    assert "which is code" in sentence


def test_code_in_a_plain_pickle(run_code: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(pickle.dumps(Hostile(run_code)))
    assert str(path) in refused(path, tmp_path)


def test_the_settings_of_the_authors_trainings(file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their checkpoints hold a CfgNode of yacs in another. It is opened as a dictionary, without yacs, and not run."""
    ran: list[str] = []

    class CfgNode(dict[str, Any]):
        __module__, __qualname__ = "yacs.config", "CfgNode"

        def __setstate__(self, state: Any) -> None:
            ran.append("state")

        def __getstate__(self) -> Any:
            return {"__immutable__": True, "__deprecated_keys__": set()}

    yacs, config = ModuleType("yacs"), ModuleType("yacs.config")
    vars(config)["CfgNode"] = CfgNode
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "yacs", yacs)
        patched.setitem(sys.modules, "yacs.config", config)
        settings = CfgNode({"MODEL": CfgNode({"NAME": "swinv2"}), "BASE": [""]})
        path = saved({"model": file, "config": settings, "epoch": 3}, tmp_path)
        report = convert(str(path), None)
    again = convert(str(path), tmp_path / "out")
    assert any("beside it there is 'config', 'epoch'" in note for note in report.notes)
    assert (report.parameters, ran) == (again.parameters, [])


def test_a_whole_module_in_a_pickle(tmp_path: Path) -> None:
    """Somebody saved the network and not its tensors."""
    sentence = refused(saved(torch.nn.Linear(2, 2), tmp_path), tmp_path)
    assert "torch.nn.modules.linear.Linear" in sentence


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param([torch.ones(2)], "holds list", id="list"),
        pytest.param({}, "holds no tensor", id="nothing"),
        pytest.param({"model": {}}, "holds no tensor", id="nothing-inside"),
        pytest.param({"epoch": 3, "x": torch.ones(2)}, "'epoch'", id="numbers-among-tensors"),
        pytest.param({1: torch.ones(2)}, "holds more than tensors by name: 1", id="names-that-are-none"),
        pytest.param({"a": torch.ones(2), "b": torch.ones(2)}, "these 2 tensors are no Swin", id="another-network"),
    ],
)
def test_other_contents(content: Any, expected: str, tmp_path: Path) -> None:
    assert expected in refused(saved(content, tmp_path), tmp_path)


def test_a_published_name_with_other_contents(file: File, tmp_path: Path) -> None:
    """torchvision's files bear the first digits of their digest."""
    path = tmp_path / "swin_v2_t-b137f0e2.pth"
    torch.save(file, path)
    assert "not b137f0e2" in refused(path, tmp_path)


# --- what is wrong with the place -------------------------------------------------------------------------------------


def test_places_that_hold_no_weights(tmp_path: Path) -> None:
    """Nothing there, an empty folder, a dangling link, a loop of links, a pipe."""
    assert "there is no file or folder" in refused(tmp_path / "nothing", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "holds no weights" in refused(tmp_path / "empty", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "gone.pth")
    assert "gone.pth', which is not there" in refused(tmp_path / "link", tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "loop" in refused(tmp_path / "loop", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in refused(tmp_path / "pipe", tmp_path)


def test_a_folder_in_place_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "model" / "model.safetensors").mkdir(parents=True)
    assert "model.safetensors" in refused(tmp_path / "model", tmp_path)


def test_a_file_that_may_not_be_read(file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as a user who may read everything, so the system's answer is given by hand."""
    path = saved({"model": file}, tmp_path)
    opened = Path.open

    def deny(self: Path, *arguments: Any, **named: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", deny)
    assert "may not be read: permission denied" in refused(path, tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param("{", "config.json' cannot be read", id="cut-off"),
        pytest.param("[1]", "holds list", id="a-list"),
        pytest.param('{"model_type": "vit"}', "of the model type 'vit'", id="another-model"),
        pytest.param('{"model_type": "swinv2", "depths": []}', "describes no possible model", id="impossible"),
        pytest.param('{"model_type": "swinv2", "embed_dim": 96}', "embed_dim is 96 there and 16", id="another-size"),
    ],
)
def test_a_configuration_beside_the_weights(config: str, expected: str, file: File, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(file, folder / "model.safetensors")
    (folder / "config.json").write_text(config)
    assert expected in refused(folder, tmp_path)


def test_shards_that_do_not_belong_together(file: File, tmp_path: Path) -> None:
    """One is missing, one is not listed, and one is a way out of the folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    names = sorted(file)
    where = {name: f"model-{1 + index % 2}.safetensors" for index, name in enumerate(names)}
    for number in (1, 2):
        part = f"model-{number}.safetensors"
        save_file({name: file[name] for name in names if where[name] == part}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    convert(str(folder), None)
    index.write_text(json.dumps({"weight_map": {name: part for name, part in where.items() if name != names[0]}}))
    assert names[0] in refused(folder, tmp_path)
    index.write_text(json.dumps({"weight_map": where | {names[0]: "../model.safetensors"}}))
    assert "does not say which file" in refused(folder, tmp_path)
    index.write_text(json.dumps({"weight_map": where}))
    (folder / "model-2.safetensors").unlink()
    assert "there is no file" in refused(folder, tmp_path)


# --- what is wrong with the output ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["swinv2", "timm", "microsoft"])
def test_a_full_disk(format: str, file: File, tmp_path: Path) -> None:
    """The system stops writing after some bytes, as on a full disk: the folder is not there, nor a part of it."""
    path = saved({"model": file}, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        sentence = refused(path, tmp_path, format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "could not be written" in sentence
    assert "Nothing was left behind" in sentence


def test_an_interruption_leaves_nothing(file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops it while it writes."""
    path = saved({"model": file}, tmp_path)

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swinv2.convert.write._write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(str(path), tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pth"]


def test_a_folder_of_somebody_else_is_not_taken_away(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name for the unfinished folder can be foreseen, and only the one that was made is removed."""
    path = saved({"model": file}, tmp_path)
    theirs = tmp_path / f".unfinished-out.{os.getpid()}"
    theirs.mkdir()
    (theirs / "precious").touch()
    monkeypatch.setattr("swinv2.convert.write.tempfile.mkdtemp", Mock(side_effect=OSError(errno.EROFS, "Read-only")))
    assert "could not be written" in refused(path, tmp_path)
    monkeypatch.undo()
    convert(str(path), tmp_path / "out")
    assert (theirs / "precious").exists()
    usual = tmp_path / "usual"
    usual.mkdir()
    assert (tmp_path / "out").stat().st_mode == usual.stat().st_mode


def test_a_file_system_that_cannot_force_names_to_the_disk(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is whole and has its name then: no failure."""
    path, force = saved({"model": file}, tmp_path), write.force_to_disk

    def refuse(place: Path) -> None:
        if place == tmp_path:
            raise OSError(errno.EINVAL, "Invalid argument")
        force(place)

    monkeypatch.setattr(write, "force_to_disk", refuse)
    convert(str(path), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


def test_code_that_a_configuration_names_is_not_handed_on(file: File, tmp_path: Path) -> None:
    """transformers would fetch and run it where it is trusted."""
    convert(str(saved({"model": file}, tmp_path)), tmp_path / "model")
    for name in ("config.json", "preprocessor_config.json"):
        place = tmp_path / "model" / name
        fields = json.loads(place.read_text())
        code = {"auto_map": {"AutoModel": "them/their--code.Model"}, "custom_pipelines": {"x": {"impl": "code.X"}}}
        place.write_text(json.dumps(fields | code))
    convert(str(tmp_path / "model"), tmp_path / "out")
    for name in ("config.json", "preprocessor_config.json"):
        fields = json.loads((tmp_path / "out" / name).read_text())
        assert "image_size" in fields or "image_mean" in fields
        assert not {"auto_map", "custom_pipelines"} & set(fields)


def test_a_repository_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles are not fetched from the hub; the sentence says what to do."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *arguments, **named: str(tmp_path))
    with pytest.raises(UsageError, match=r"no safetensors .*; download the \.pth you want and give its path"):
        convert("someone/pickles", None)


def test_outputs_that_are_there_or_cannot_be(file: File, tmp_path: Path) -> None:
    """A file, a folder, a dangling link; and a place that is none. They are refused before the source is opened."""
    out = tmp_path / "out"
    for make in (out.touch, out.mkdir, lambda: out.symlink_to(tmp_path / "gone")):
        make()
        assert "is there already" in refused("nowhere.pth", tmp_path)
        out.rmdir() if out.is_dir() else out.unlink()
    with pytest.raises(UsageError, match="there is no folder"):
        convert("nowhere.pth", tmp_path / "no" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="there is no folder"):
        convert("nowhere.pth", tmp_path / "file" / "out")


def test_an_output_that_came_meanwhile_is_kept(file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look and the last step somebody made a folder of that name."""
    path = saved({"model": file}, tmp_path)
    rename = os.rename

    def rename_late(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "theirs").touch()
        rename(source, target)

    monkeypatch.setattr("swinv2.convert.write.os.rename", rename_late)
    with pytest.raises(UsageError, match="could not be written"):
        convert(str(path), tmp_path / "out")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["theirs"]
    assert not list(tmp_path.glob(".unfinished-*"))
