"""The images in the body of a request: files of a form, one image as it is, or JSON with base64.

In: headers and bytes. Out: images as files in memory, with their names. Nothing is written. This module decodes no
image.
"""

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from swinv2.serving.refusals import Refusal

FORM, JSON = "multipart/form-data", "application/json"

_HOW = (
    "Send files as a form (curl --form images=@photo.jpg), one image as it is (curl --header 'Content-Type: image/png' "
    '--data-binary @photo.png), or JSON: {"images": [{"name": "photo.jpg", "data": "... base64 ..."}]}.'
)

_LONGEST_NAME = 255

_MOST_VALUES = 1000
"""Brackets and commas of JSON for each image; more than ten are in its name only."""

_MOST_HEADER_BYTES = 16 * 1024
"""Bytes of the headers of a part of a form."""

_DATA_ADDRESS = re.compile(r"data:[\w./+-]*;base64,")
"""What browsers put before base64."""


@dataclass(frozen=True)
class SentImage:
    """An image of a request.

    Attributes:
        name: Its name as the client gave it, which is used in the answer only.
        data: The file.
    """

    name: str
    data: bytes


def kind_of(content_type: str | None) -> str:
    """The kind of a body by the header Content-Type: `FORM`, `JSON` or "image".

    Raises:
        Refusal: The service reads no such body.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind in (FORM, JSON):
        return kind
    if kind.startswith("image/") or kind == "application/octet-stream":
        return "image"
    raise Refusal(415, f"the request has {'no Content-Type' if not kind else f'the Content-Type {kind!r}'}. {_HOW}")


def length_of(content_length: str | None, encoding: str | None, most: int) -> int | None:
    """The length in bytes that a request announces for its body; None if it does not.

    Args:
        content_length: The header Content-Length.
        encoding: The header Content-Encoding.
        most: The largest body.

    Raises:
        Refusal: The body is too large, or it is compressed.
    """
    if encoding not in (None, "", "identity"):
        raise Refusal(415, f"the body is compressed ({encoding[:40]!r}); send it as it is.")
    if content_length is None:
        return None
    # uvicorn has refused what is no number.
    length = int(content_length)
    if length > most:
        raise too_large(most)
    return length


def too_large(most: int) -> Refusal:
    """The refusal of a body that is too large."""
    return Refusal(413, f"the body has more than {most:,} bytes, the limit; send fewer or smaller images.")


def images_in(kind: str, content_type: str, body: bytes, most_images: int) -> list[SentImage]:
    """The images in a body.

    Args:
        kind: See `kind_of`.
        content_type: The header Content-Type.
        body: The body.
        most_images: The largest number of images.

    Raises:
        Refusal: The body is damaged, or has no image or too many.
    """
    if kind == FORM:
        images = _Form(content_type, most_images).read(body)
    elif kind == JSON:
        images = _images_in_json(body, most_images)
    else:
        images = [SentImage("image-1", body)] if body else []
    if not images:
        raise Refusal(422, f"the request has no image. {_HOW}")
    return images


def _too_many(most: int) -> Refusal:
    return Refusal(413, f"the request has more than {most} images, the limit; send several requests.")


@dataclass
class _Part:
    """A part of a form that is being read."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    header: bytes = b""
    value: bytes = b""
    header_bytes: int = 0
    name: str = ""
    data: list[bytes] = field(default_factory=list)


class _Form:
    """Reads a form in memory. Starlette's own reader writes large files to the disk.

    Args:
        content_type: The header Content-Type.
        most_images: The largest number of images.

    Raises:
        Refusal: The header has no boundary.
    """

    def __init__(self, content_type: str, most_images: int) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise Refusal(400, "the Content-Type multipart/form-data has no boundary.")
        self._most, self._images, self._part, self._is_complete = most_images, list[SentImage](), _Part(), False
        callbacks: Any = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise Refusal(400, f"the boundary of the form cannot be used: {error}.") from error

    def read(self, body: bytes) -> list[SentImage]:
        """The files of a form.

        Raises:
            Refusal: The form is damaged, has other fields than files, or too many files.
        """
        try:
            self._parser.write(body)
            self._parser.finalize()
        except FormParserError as error:
            raise Refusal(400, f"the form is damaged: {str(error)[:200]}.") from error
        if not self._is_complete and body:
            raise Refusal(400, "the form ends before its last boundary.")
        return self._images

    def _begin_part(self) -> None:
        if len(self._images) == self._most:
            raise _too_many(self._most)
        self._part = _Part()

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._part.header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._part.value += data[start:end]

    def _count_header(self, length: int) -> None:
        """Counts bytes of headers. Some versions of the parser have no limit for them."""
        self._part.header_bytes += length
        if self._part.header_bytes > _MOST_HEADER_BYTES:
            raise Refusal(400, f"a part of the form has more than {_MOST_HEADER_BYTES:,} bytes of headers.")

    def _end_header(self) -> None:
        self._part.headers[self._part.header.lower()] = self._part.value
        self._part.header = self._part.value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition"))
        name = options.get(b"filename")
        if name is None:
            wrong = _as_text(options.get(b"name", b""))
            raise Refusal(
                422,
                f"the field {wrong!r} of the form is no file; parameters are part of the address: /classify?top_k=5.",
            )
        self._part.name = _as_text(name)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._part.data.append(data[start:end])

    def _end_part(self) -> None:
        self._images.append(SentImage(self._part.name or _numbered(self._images), b"".join(self._part.data)))

    def _end(self) -> None:
        self._is_complete = True


def _images_in_json(body: bytes, most_images: int) -> list[SentImage]:
    """The images of a body of JSON."""
    # No other thread runs while Python reads JSON, and small values take many times their length in memory.
    if sum(map(body.count, (b"[", b"{", b","))) > _MOST_VALUES * most_images:
        raise Refusal(413, f"the JSON has far more values than {most_images} images need, which is the limit.")
    try:
        contents: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no valid JSON: {str(error)[:200]}. {_HOW}") from error
    found: Any = contents.get("images") if isinstance(contents, dict) else None
    if not isinstance(found, list) or len(contents) > 1:
        raise Refusal(422, f'the JSON is not an object with "images", a list, alone. {_HOW}')
    if len(found) > most_images:
        raise _too_many(most_images)
    images: list[SentImage] = []
    for item in found:
        fields: dict[str, Any] = {"data": item} if isinstance(item, str) else item
        is_usual = isinstance(fields, dict) and "data" in fields and fields.keys() <= {"name", "data"}
        if not is_usual or not all(isinstance(value, str) for value in fields.values()):
            raise Refusal(
                422, f'"images" has an entry that is neither base64 nor an object with "data" and "name". {_HOW}'
            )
        name = fields.get("name", "")[:_LONGEST_NAME] or _numbered(images)
        images.append(SentImage(name, _decode(name, fields["data"])))
    return images


def _decode(name: str, text: str) -> bytes:
    """The bytes of a text of base64, in which lines may end anywhere."""
    begun = _DATA_ADDRESS.match(text[:100])
    text = text[begun.end() :] if begun else text
    try:
        # Not text.split(), which would make an object of each piece.
        return base64.b64decode(text.encode("ascii").translate(None, b" \t\r\n"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, f"the data of {name[:40]!r} is no base64: {error}.") from error


def _numbered(images: list[SentImage]) -> str:
    """The name of the next image, if it has none."""
    return f"image-{len(images) + 1}"


def _as_text(name: bytes) -> str:
    """A name of a form as text."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        text = name.decode("latin-1")
    return text[:_LONGEST_NAME]
