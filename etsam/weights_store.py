"""Weights that are known by a name: download, list, verify."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etsam.errors import ConfigError, DownloadError, EtsamError
from etsam.io.download import Download, Progress, download_all, read_record
from etsam.io.web import Web
from etsam.weights import REGISTRY, NamedWeights, find_weights, sha256_of, weights_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileState:
    """One file of named weights.

    Attributes
    ----------
    weights, file_name
        Which.
    path
        Where it lies; None: nowhere.
    state
        `there`, `missing`; after verification `verified`, `changed`, or `no record` (it was not downloaded here).
    sha256
        Of the file, where it was read; empty otherwise.
    """

    weights: NamedWeights
    file_name: str
    path: Path | None
    state: str
    sha256: str = ""


def choose_weights(names: Sequence[str]) -> list[NamedWeights]:
    """Weights of these names; all without names.

    Raises
    ------
    ConfigError
        If a name is unknown.
    """
    for name in names:
        if name not in REGISTRY:
            raise ConfigError(f"there are no weights {name}; allowed: {', '.join(REGISTRY)}.")
    return [REGISTRY[name] for name in dict.fromkeys(names or REGISTRY)]


def list_weights(names: Sequence[str] = ()) -> list[FileState]:
    """Every file of these weights, with the place where it lies."""
    states = []
    for weights in choose_weights(names):
        for file_name in weights.files:
            path = find_weights(file_name)
            states.append(FileState(weights, file_name, path, "missing" if path is None else "there"))
    return states


def verify_weights(names: Sequence[str] = ()) -> list[FileState]:
    """Compare every file that is there with the SHA-256 that was recorded when it was downloaded."""
    states = []
    for entry in list_weights(names):
        if entry.path is None:
            states.append(entry)
            continue
        record, found = read_record(entry.path), sha256_of(entry.path)
        state = "no record" if record is None else "verified" if record.checksums["sha256"] == found else "changed"
        states.append(FileState(entry.weights, entry.file_name, entry.path, state, found))
    return states


def mirrors_of_environment() -> list[str]:
    """Addresses in ETSAM_WEIGHTS_MIRRORS, separated by blanks."""
    return os.environ.get("ETSAM_WEIGHTS_MIRRORS", "").split()


def fetch_weights(
    names: Sequence[str],
    *,
    mirrors: Sequence[str] = (),
    offline: bool = False,
    web: Web | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Make sure that weights are there; download what is not.

    Parameters
    ----------
    names
        Of weights.
    mirrors
        Addresses of folders that hold the same files, tried in order, before the original.
    offline
        Ask no server.
    web, progress
        As for `etsam.io.download.download`.

    Returns
    -------
    list[Path]
        Files of all these weights.

    Raises
    ------
    DownloadError, OutputError
        If one cannot be had; every file that failed is named.
    """
    web = web or Web()
    paths: list[Path] = []
    items = []
    for weights in choose_weights(names):
        missing = [name for name in weights.files if find_weights(name) is None]
        if missing and not weights.page:
            raise DownloadError(
                f"{weights.name} comes with the program, but this version has no trained {weights.name} weights; there "
                "is nothing to download."
            )
        published = _published(weights, web) if missing and not offline else {}
        for file_name in weights.files:
            path = find_weights(file_name)
            if path is None:
                path = weights_folder() / file_name
                urls = [f"{mirror.rstrip('/')}/{file_name}" for mirror in (*mirrors, *mirrors_of_environment())]
                urls.append(_original_url(weights, file_name))
                size, checksums = published.get(file_name, (None, ()))
                items.append(Download(path, tuple(dict.fromkeys(urls)), size, checksums))
            paths.append(path)
    failures = download_all(items, jobs=2, web=web, offline=offline, progress=progress)
    if failures:
        raise _together([error for _, error in failures])
    return paths


def _together(errors: Sequence[EtsamError]) -> EtsamError:
    return type(errors[0])(" | ".join(dict.fromkeys(str(error) for error in errors)))


def _zenodo_url() -> str:
    return os.environ.get("ETSAM_ZENODO_URL", "https://zenodo.org").rstrip("/")


def _original_url(weights: NamedWeights, file_name: str) -> str:
    if weights.zenodo_record is None:
        return f"{weights.page}/{file_name}"
    return f"{_zenodo_url()}/records/{weights.zenodo_record}/files/{file_name}?download=1"


def _published(weights: NamedWeights, web: Web) -> dict[str, tuple[int | None, tuple[tuple[str, str], ...]]]:
    """File -> (size, checksums) as Zenodo's REST API lists them; empty, with a warning, if it cannot be asked."""
    if weights.zenodo_record is None:
        return {}
    url = f"{_zenodo_url()}/api/records/{weights.zenodo_record}"
    try:
        answer = web.get_json(url)
        listed = {entry.get("key", entry.get("filename")): entry for entry in answer["files"]}
        return {name: (_size(entry), _checksums(entry)) for name, entry in listed.items()}
    except DownloadError as error:
        log.warning("no published checksums to compare with: %s", error)
    except (AttributeError, KeyError, TypeError) as error:
        log.warning("no published checksums to compare with: %s answers in an unknown form (%r)", url, error)
    return {}


def _size(entry: Mapping[str, Any]) -> int | None:
    size = entry.get("size", entry.get("filesize"))
    return int(size) if isinstance(size, int | float) else None


def _checksums(entry: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Read `md5:0123...`; the older form of the interface leaves `md5:` out."""
    algorithm, colon, value = str(entry.get("checksum", "")).rpartition(":")
    return ((algorithm if colon else "md5", value),) if value else ()


def provide(weights: Mapping[str, Any]) -> None:
    """Download what the config group `weights` needs, if it says `download: true`.

    Raises
    ------
    ConfigError
        If the group has no weights to download, or `download` is neither true nor false.
    DownloadError, OutputError
        As `fetch_weights`.
    """
    asked = weights.get("download", False)
    if not isinstance(asked, bool):
        raise ConfigError(f"weights.download={asked} does not fit; allowed: true or false (default false).")
    if not asked:
        return
    name = str(weights.get("name"))
    if name not in REGISTRY:
        raise ConfigError(f"weights.download=true does not fit weights={name}, which are files of your own.")
    if any(find_weights(file_name) is None for file_name in REGISTRY[name].files):
        log.info("downloading the weights %s into %s", name, weights_folder())
    mirrors = weights.get("mirrors") or ()
    fetch_weights([name], mirrors=[mirrors] if isinstance(mirrors, str) else list(mirrors))
