"""Files of a dataset in a Dataverse repository, by its native interface."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from etsam.errors import DownloadError
from etsam.io.web import Web

log = logging.getLogger(__name__)

PUBLISHED_DOI = "doi:10.7910/DVN/K4JKCW"
"""The published ETSAM data set: masks of all tomograms, and the tomograms that are not on the CryoET Data Portal."""

_HARVARD_URL = "https://dataverse.harvard.edu"
# names of checksums in Dataverse's answers -> those of hashlib (Dataverse guide, setting :FileFixityChecksumAlgorithm)
_ALGORITHMS = {"MD5": "md5", "SHA-1": "sha1", "SHA-256": "sha256", "SHA-512": "sha512"}


@dataclass(frozen=True)
class DataverseFile:
    """One file of a dataset.

    Attributes
    ----------
    folder
        With slashes, as `10000/245/target_mask`.
    name
        Its name in that folder.
    url
        Where it can be fetched.
    size
        In bytes; None if not told.
    checksums
        (algorithm as in `hashlib`, hexadecimal digest) pairs.
    restricted
        Whether its owner lets nobody download it without asking.
    """

    folder: str
    name: str
    url: str
    size: int | None
    checksums: tuple[tuple[str, str], ...]
    restricted: bool


def dataverse_url(given: str | None = None) -> str:
    """Address of the repository: as given, ETSAM_DATAVERSE_URL, or Harvard's."""
    return (given or os.environ.get("ETSAM_DATAVERSE_URL") or _HARVARD_URL).rstrip("/")


def list_dataset(server: str, doi: str, web: Web) -> dict[str, list[DataverseFile]]:
    """List the files of the latest published version, folder by folder.

    Parameters
    ----------
    server
        Address of the repository.
    doi
        As `doi:10.7910/DVN/K4JKCW`.
    web
        Connections.

    Returns
    -------
    dict[str, list[DataverseFile]]
        Folder -> its files.

    Raises
    ------
    DownloadError
        If the repository cannot be reached, does not know the dataset, or answers in an unknown form.
    """
    url = f"{server}/api/datasets/:persistentId/?persistentId={quote(doi, safe=':/')}"
    answer = web.get_json(url)
    folders: dict[str, list[DataverseFile]] = {}
    try:
        for entry in answer["data"]["latestVersion"]["files"]:
            file = _file(entry, server)
            folders.setdefault(file.folder, []).append(file)
    except (KeyError, TypeError, ValueError) as error:
        raise DownloadError(
            f"{url}: answers in a form this program does not know ({error!r}); expected is that of Dataverse's native "
            "interface, version 1."
        ) from error
    return folders


def _file(entry: Mapping[str, Any], server: str) -> DataverseFile:
    data = entry["dataFile"]
    number = int(data["id"])
    url = f"{server}/api/access/datafile/{number}"
    name, size, checksums = str(entry.get("label") or data["filename"]), data.get("filesize"), _checksums(data)
    if data.get("tabularData"):
        # such files were rewritten as tab-separated text; the listed size and checksum need not be the original's
        url += "?format=original"
        name, size, checksums = str(data.get("originalFileName") or name), data.get("originalFileSize"), ()
    if re.search(r"[/\\\0]", name) or name in ("", ".", ".."):
        raise ValueError(f"file name {name!r}")
    folder = str(entry.get("directoryLabel") or "").strip("/")
    return DataverseFile(
        folder, name, url, None if size is None else int(size), checksums, bool(entry.get("restricted"))
    )


def _checksums(data: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    checksum = data.get("checksum") or {"type": "MD5", "value": data.get("md5")}
    algorithm, value = _ALGORITHMS.get(str(checksum.get("type"))), checksum.get("value")
    return ((algorithm, str(value).lower()),) if algorithm and value else ()
