"""`swinv2 info`: a model in numbers, also at another size."""

import json
from pathlib import Path

from commands import swinv2_command


def test_info(model: Path) -> None:
    result = swinv2_command("info", model)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "16 x 16 pixels" in result.stdout
    assert "ant, bee [bold], cat, dog" in result.stdout
    assert " runs: " in result.stdout
    description = json.loads(swinv2_command("info", "tiny", "--json").stdout)
    assert description["parameters"] == 27_578_154
    assert [stage["grid"] for stage in description["stages"]] == [[64, 64], [32, 32], [16, 16], [8, 8]]
    assert "87.6%" in swinv2_command("info", "microsoft/swinv2-large-patch4-window12to24-192to384-22kto1k-ft").stdout


def test_info_at_another_size(model: Path) -> None:
    """Windows are planned for it, the position bias extrapolated; memory is worked out for it."""
    described = json.loads(
        swinv2_command("info", "tiny", "--image-size", "512x384", "--window-size", "16", "--json").stdout
    )
    assert described["stages"][0]["grid"] == [128, 96]
    assert {(tuple(stage["window"]), tuple(stage["pretrained_window"])) for stage in described["stages"]} == {
        *(((16, 16), (8, 8)), ((16, 12), (8, 8)))
    }
    assert "memory_mib" not in described
    described = json.loads(swinv2_command("info", "tiny", "--window-size", "4x16,8x4,8,4", "--json").stdout)
    assert [(stage["window"], stage["shift"]) for stage in described["stages"]] == [
        ([4, 16], [2, 8]),
        ([8, 4], [4, 2]),
        ([8, 8], [4, 4]),
        ([4, 4], [2, 2]),
    ]
    result = swinv2_command("info", model, "--memory", "--batch-size", "2", "--world-size", "4")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "2 images on each process, shared by 4 processes" in result.stdout
    assert result.stdout.count("computed again") == 1
    ways = json.loads(swinv2_command("info", model, "--memory", "--json").stdout)["memory_mib"]
    assert [way["checkpointed"] for way in ways] == [False, True]
