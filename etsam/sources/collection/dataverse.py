"""Files of the published data set in Harvard Dataverse, folder by folder.

pooch knows the files of a Dataverse data set by their names alone; here a name may lie in every folder.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import PurePosixPath

from etsam.download import get_json
from etsam.errors import DownloadError

PUBLISHED_DOI = "doi:10.7910/DVN/K4JKCW"
"""The published ETSAM data set: masks of all tomograms, and the tomograms that are not on the CryoET Data Portal."""


@dataclass(frozen=True)
class DataverseFile:
    """One file of the data set.

    Attributes
    ----------
    name
        In its folder.
    url
        Where it can be fetched.
    size
        In bytes.
    checksums
        (algorithm as in `hashlib`, hexadecimal digest) pairs.
    restricted
        Whether its owner lets nobody download it without asking.
    """

    name: str
    url: str
    size: int
    checksums: tuple[tuple[str, str], ...]
    restricted: bool


def list_dataset() -> dict[str, list[DataverseFile]]:
    """Folder -> its files in the latest published version; folders such as `10000/245/target_mask`.

    The environment variable ETSAM_DATAVERSE_URL names another server.

    Raises
    ------
    DownloadError
        If the repository cannot be reached, does not know the data set, or answers in an unknown form.
    """
    server = os.environ.get("ETSAM_DATAVERSE_URL", "https://dataverse.harvard.edu").rstrip("/")
    url = f"{server}/api/datasets/:persistentId/?persistentId={PUBLISHED_DOI}"
    answer = get_json(url)
    folders: dict[str, list[DataverseFile]] = {}
    try:
        for entry in answer["data"]["latestVersion"]["files"]:
            data = entry["dataFile"]
            checksum = data.get("checksum") or {}
            algorithm = str(checksum.get("type", "")).replace("-", "").lower()  # MD5, SHA-1, SHA-256, SHA-512
            file = DataverseFile(
                PurePosixPath(entry["label"]).name,
                f"{server}/api/access/datafile/{int(data['id'])}",
                int(data["filesize"]),
                ((algorithm, checksum["value"]),) if algorithm in hashlib.algorithms_guaranteed else (),
                bool(entry.get("restricted")),
            )
            folders.setdefault(str(entry.get("directoryLabel", "")).strip("/"), []).append(file)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DownloadError(
            f"{url}: answers in a form this program does not know ({error!r}); expected is that of Dataverse's native "
            "interface, version 1."
        ) from error
    return folders
