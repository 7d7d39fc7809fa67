"""What becomes of a body: the images in it, with their names."""

import base64
import json

import pytest

from serving.clients import BOUNDARY, form
from swinv2.serving.bodies import FORM, JSON, SentImage, images_in, kind_of, length_of
from swinv2.serving.refusals import Refusal

HEADER = f"{FORM}; boundary={BOUNDARY}"


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (HEADER, FORM),
        ("Multipart/Form-Data; boundary=x", FORM),
        ("application/json", JSON),
        ("application/json; charset=utf-8", JSON),
        ("image/jpeg", "image"),
        ("image/anything", "image"),
        ("application/octet-stream", "image"),
    ],
)
def test_kinds(header: str, kind: str) -> None:
    assert kind_of(header) == kind


@pytest.mark.parametrize("header", [None, "", "text/html", "imagex/png", "application/x-www-form-urlencoded"])
def test_other_kinds_are_refused_with_an_example(header: str | None) -> None:
    with pytest.raises(Refusal, match=r"curl --form images=@photo\.jpg") as refused:
        kind_of(header)
    assert refused.value.status == 415


def test_lengths() -> None:
    assert length_of(None, None, 10) is None
    assert length_of("10", "identity", 10) == 10
    with pytest.raises(Refusal, match="more than 10 bytes") as refused:
        length_of("11", None, 10)
    assert refused.value.status == 413
    with pytest.raises(Refusal, match="compressed"):
        length_of("5", "gzip", 10)


def test_one_image_as_it_is() -> None:
    assert images_in("image", "image/png", b"abc", 1) == [SentImage("image-1", b"abc")]


def test_files_of_a_form() -> None:
    """With the bytes between the boundaries as they are, whatever the fields are called."""
    data = b"\r\n--" + BOUNDARY[:-1].encode() + b"\r\n\r\n\x00\xff"
    body = form(
        ('name="images"; filename="a.png"', data),
        ('name="x"; filename="b \u00e4.png"', b""),
        ('name="images"; filename=""', b"c"),
        ("name=images; filename*=UTF-8''d.png; filename=\"d.png\"", b"d"),
    )
    found = images_in(FORM, HEADER, body, 4)
    assert found[0] == SentImage("a.png", data)
    assert found[1:3] == [SentImage("b \u00e4.png", b""), SentImage("image-3", b"c")]
    assert found[3].data == b"d"
    with pytest.raises(Refusal, match="more than 3 images") as refused:
        images_in(FORM, HEADER, body, 3)
    assert refused.value.status == 413


def test_headers_of_a_part_are_bounded() -> None:
    """Their names and values together; a name of a file may be long."""
    name = "n" * 4000
    assert images_in(FORM, HEADER, form((f'name="a"; filename="{name}"', b"")), 1) == [SentImage(name[:255], b"")]
    headers = "\r\n".join(f"X-{index}: {'y' * 4000}" for index in range(5))
    with pytest.raises(Refusal) as refused:
        images_in(FORM, HEADER, form((f'name="a"; filename="b"\r\n{headers}', b"")), 1)
    assert refused.value.status == 400


def test_json() -> None:
    """base64 as text or with a name; in lines, or as browsers write it."""
    text = base64.b64encode(bytes(range(100))).decode()
    lines = base64.encodebytes(bytes(range(100))).decode()
    entries = [
        text,
        {"data": lines, "name": "b"},
        {"data": f"data:image/png;base64,{text}"},
        {"data": text, "name": ""},
    ]
    found = images_in(JSON, JSON, json.dumps({"images": entries}).encode(), 4)
    assert [image.name for image in found] == ["image-1", "b", "image-3", "image-4"]
    assert {image.data for image in found} == {bytes(range(100))}


def test_json_that_would_take_long_to_read_is_refused_unread() -> None:
    """A name may have commas, but a million values are no images."""
    name = ",[{" * 300
    body = json.dumps({"images": [{"data": "AAAA", "name": name}] * 4}).encode()
    assert [image.name for image in images_in(JSON, JSON, body, 4)] == [name[:255]] * 4
    with pytest.raises(Refusal, match="far more values than 4 images"):
        images_in(JSON, JSON, b"[" + b"[]," * 2000 + b"[]]", 4)
