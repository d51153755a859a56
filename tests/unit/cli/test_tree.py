"""Paths as the file commands take them."""

import pytest

from wormfs.cli.tree import clean_path
from wormfs.core.errors import InvalidError


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/", b"/"),
        ("a", b"/a"),
        ("//a//b/", b"/a/b"),
        ("/a/./b/../c", b"/a/c"),
        ("/../..", b"/"),
        (b"/\xff", b"/\xff"),
    ],
)
def test_paths_are_absolute_and_plain(path: str | bytes, clean: bytes) -> None:
    assert clean_path(path) == clean


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidError):
        clean_path(path)
