"""Options in the notation that users type."""

import pytest

from swinv2.cli.options import read_point
from swinv2.errors import UsageError


def test_a_point_is_read() -> None:
    assert read_point(None) is None
    assert read_point("3, 40") == (3, 40)
    for text in ("3", "3,4,5", "a,b", "-1,2", "1.5,2", ""):
        with pytest.raises(UsageError, match="expected X,Y"):
            read_point(text)
