"""A file to download, what lies in its folder while it comes and when it is there, and downloads that have to fail."""

import hashlib

import numpy as np
import pytest

from etsam.errors import DownloadError
from etsam.io.download import download

BODY = np.random.default_rng(0).bytes(1_000_003)
OTHER = np.random.default_rng(1).bytes(1_000_003)
MD5 = ("md5", hashlib.md5(BODY).hexdigest())
WHOLE = ["tomo.mrc", "tomo.mrc.download.json"]
BROKEN = ["tomo.mrc.part", "tomo.mrc.part.json"]


def names(target):
    return sorted(path.name for path in target.parent.iterdir()) if target.parent.exists() else []


def fails(item, **settings):
    """Download something that has to fail; gives the message."""
    with pytest.raises(DownloadError) as caught:
        download(item, **settings)
    assert not item.target.exists()
    return str(caught.value)
