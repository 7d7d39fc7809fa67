"""Requests that are refused: a status of HTTP and a sentence."""

from typing import Any


class Refusal(Exception):  # noqa: N818
    """A request is refused.

    Args:
        status: Status of HTTP.
        sentence: What was wrong, and what to do.
        headers: Further headers of the response.
        fields: Further fields of the response.
    """

    def __init__(
        self, status: int, sentence: str, headers: dict[str, str] | None = None, fields: dict[str, Any] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers, self.fields = status, sentence, headers or {}, fields or {}

    @property
    def contents(self) -> dict[str, Any]:
        """The contents of the response."""
        return {"error": self.sentence, **self.fields}
