"""Paths as the file commands take them."""

import pytest

from wormfs.cli.tree import clean_path
from wormfs.core.errors import InvalidError


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/", b"/"),
        ("", b"/"),
        ("a", b"/a"),
        ("//a//b/", b"/a/b"),
        ("/a/./b/../c", b"/a/c"),
        ("/../..", b"/"),
        (b"/\xff", b"/\xff"),
    ],
)
def test_paths_are_absolute_and_plain(path: str | bytes, clean: bytes) -> None:
    assert clean_path(path) == clean


def test_nul_is_refused() -> None:
    with pytest.raises(InvalidError):
        clean_path("a\0b")
