"""Files that name classes or their colours, and files that do not."""

from pathlib import Path

import pytest

from swinv2.errors import UsageError
from swinv2.train.data.masks.names import names_beside

COLOURS = {0x010102: 0, 0x0000FF: 1, 0x090908: 2}


@pytest.mark.parametrize(
    ("file", "content", "colours"),
    [
        ("classes.txt", "road\n\nsky \ncar\n", None),
        ("labels.txt", "\ufeffroad\r\nsky\r\ncar", None),
        ("names.txt", "road\nsky\ncar", None),
        ("id2label.json", '{"2": "car", "0": "road", "1": "sky"}', None),
        ("id2label.json", '["road", "sky", "car"]', None),
        ("objectInfo150.txt", "Idx\tName\n1\troad, route\n2\tsky\n3\tcar, auto", None),
        ("class_dict.csv", "name,r,g,b\nroad,1,1,2\nsky,0,0,255\ncar, 9, 9, 8", COLOURS),
        ("label_colors.txt", "1 1 2\troad\n0 0 255 sky\n9 9 8\tcar", COLOURS),
    ],
)
def test_files_with_names(tmp_path: Path, file: str, content: str, colours: dict[int, int] | None) -> None:
    (tmp_path / file).write_text(content, "utf-8")
    assert names_beside([tmp_path]) == (("road", "sky", "car"), colours, tmp_path / file)


def test_the_first_folder_counts_and_in_it_a_table_of_colours(tmp_path: Path) -> None:
    inner, outer = tmp_path / "a" / "b", tmp_path / "a"
    inner.mkdir(parents=True)
    assert names_beside([inner, outer]) == ((), None, None)
    (outer / "class_dict.csv").write_text("name,r,g,b\nroad,1,1,2\n")
    (outer / "classes.txt").write_text("sky\n")
    assert names_beside([inner, outer]) == (("road",), {0x010102: 0}, outer / "class_dict.csv")
    (inner / "classes.txt").write_text("car\n")
    assert names_beside([inner, outer]) == (("car",), None, inner / "classes.txt")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.txt", "\n", r"classes\.txt names no class"),
        ("id2label.json", "{", r"id2label\.json does not name classes"),
        ("id2label.json", '{"1": "a"}', "the numbers are not 0, 1 and so on"),
        ("class_dict.csv", "r,g,b\n1,2,3", r"class_dict\.csv does not name classes"),
        ("label_colors.txt", "1 2 3 a\n1 2 300 b", r"class 2, '1 2 300 b', needs red, green, blue"),
        ("label_colors.txt", "1 2 3 a\n1 2 3 b", r"two classes have the colour \(1, 2, 3\)"),
    ],
)
def test_files_that_name_no_classes(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UsageError, match=message):
        names_beside([tmp_path])


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match=r"classes\.txt cannot be read.*save it as UTF-8"):
        names_beside([tmp_path])
