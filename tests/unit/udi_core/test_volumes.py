"""Volumes as people type them."""

from __future__ import annotations

import pytest

from udi_core.errors import UsageError
from udi_core.volumes import Volume


@pytest.mark.parametrize(
    ("text", "source", "target", "read_only"),
    [
        ("/data:/mnt", "/data", "/mnt", False),
        ("/data:/mnt:ro", "/data", "/mnt", True),
        ("/data:/mnt:rw", "/data", "/mnt", False),
        ("/data", "/data", "/data", False),
        ("sub/dir:/mnt", "/work/dir/sub/dir", "/mnt", False),
        ("/a b\nc:/d e", "/a b\nc", "/d e", False),
        (r"/a\:b:/c\:d:ro", "/a:b", "/c:d", True),
        ("/data/../other/:/mnt//x/./y/", "/other", "/mnt/x/y", False),
        ("/data://mnt", "/data", "/mnt", False),
    ],
)
def test_parse(text: str, source: str, target: str, read_only: bool) -> None:
    volume = Volume.parse(text, cwd="/work/dir")
    assert (volume.source, volume.target, volume.read_only) == (source, target, read_only)
    assert Volume.parse(str(volume)) == volume


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "none of them empty"),
        (":/mnt", "none of them empty"),
        ("/data:", "none of them empty"),
        ("/a:/b:ro:x", "one to three parts"),
        ("/a:/b:RO", "neither ro nor rw"),
        ("/a:b", "not an absolute path"),
        ("/a:/", "image's own root"),
        ("/a:/b/..", "image's own root"),
        ("/a\0b:/c", "NUL"),
    ],
)
def test_wrong_volumes_say_which_part_is_wrong(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Volume.parse(text)
    assert says in caught.value.details
