"""Weights that are known by a name: download, list, verify."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etsam.download import DownloadJob, NoNetworkError, Progress, fetch_all, get_json, is_offline, read_record
from etsam.errors import ConfigError, DownloadError, EtsamError
from etsam.paths import sha256
from etsam.weights.registry import PUBLISHED, REGISTRY, NamedWeights, find_weights, weights_folder

log = logging.getLogger(__name__)

MIRRORS_VARIABLE = "ETSAM_WEIGHTS_MIRRORS"
"""Environment variable with addresses of folders that hold the same files, separated by blanks."""


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
        `there`, `missing`; after verification `verified`, `changed`, `no record` (it was not downloaded here),
        or `embedded` (it came with the program).
    sha256
        Of the file, where it was verified; empty otherwise.
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


def with_automatic_weights(overrides: Sequence[str]) -> list[str]:
    """Settings in which `weights=auto`, the default, has become the published weights, if both files are there.

    Whoever names a network or files of his own has chosen himself. Without the published weights the settings stay as
    they are: configs/weights/auto.yaml has the embedded ones.

    Parameters
    ----------
    overrides
        KEY=VALUE of a command, and Hydra's flags.
    """
    keys = [item.partition("=")[0].lstrip("+~") for item in overrides]
    chosen = any(key == "net" or key.startswith("weights.") for key in keys)
    named = [item for item in overrides if item.startswith("weights=")]
    if chosen or named not in ([], ["weights=auto"]) or None in map(find_weights, PUBLISHED.files):
        return list(overrides)
    kept = [item for item in overrides if item not in named]
    # before all other settings, which may change values of the group, and after flags of Hydra
    first = next((at for at, item in enumerate(kept) if "=" in item and not item.startswith("-")), len(kept))
    return [*kept[:first], f"weights={PUBLISHED.name}", "+weights.asked=auto", *kept[first:]]


def list_weights(names: Sequence[str] = (), *, verify: bool = False) -> list[FileState]:
    """Files of these weights, with the place where each lies.

    Parameters
    ----------
    names
        Of weights; none: all.
    verify
        Compare what is there with the SHA-256 that was recorded when it was downloaded.
    """
    return [_state(weights, file_name, verify) for weights in choose_weights(names) for file_name in weights.files]


def _state(weights: NamedWeights, file_name: str, verify: bool) -> FileState:
    path = find_weights(file_name)
    if path is None:
        return FileState(weights, file_name, None, "missing")
    if not verify:
        return FileState(weights, file_name, path, "there")
    record, found = read_record(path), sha256(path)
    if record is None:
        state = "no record" if weights.page else "embedded"
    else:
        state = "verified" if record.checksums["sha256"] == found else "changed"
    return FileState(weights, file_name, path, state, found)


def fetch_weights(
    names: Sequence[str], *, mirrors: Sequence[str] = (), offline: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Make sure that weights are there; download what is not.

    Parameters
    ----------
    names
        Of weights.
    mirrors
        Addresses of folders that hold the same files, tried in order, before those of the environment and the original.
    offline
        Ask no server.
    progress
        As for `etsam.download.fetch`.

    Returns
    -------
    list[Path]
        Files of all these weights.

    Raises
    ------
    DownloadError, OutputError
        If one cannot be had; every file that failed is named.
    """
    paths: list[Path] = []
    jobs = []
    for weights in choose_weights(names):
        missing = [name for name in weights.files if find_weights(name) is None]
        if missing and not weights.page:
            raise DownloadError(
                f"{weights.name} comes with the program, but this version has no trained {weights.name} weights; there "
                "is nothing to download."
            )
        has_mirror = bool(mirrors or os.environ.get(MIRRORS_VARIABLE))
        if missing and (offline or is_offline()) and not has_mirror:
            raise _by_hand(weights, missing)
        try:
            checksums = _published_checksums(weights) if missing and not (offline or is_offline()) else {}
        except NoNetworkError as error:
            if not has_mirror:
                raise _by_hand(weights, missing) from error
            checksums = {}
        for file_name in weights.files:
            path = find_weights(file_name) or weights_folder() / file_name
            paths.append(path)
            if file_name in missing:
                folders = (*mirrors, *os.environ.get(MIRRORS_VARIABLE, "").split())
                urls = [f"{folder.rstrip('/')}/{file_name}" for folder in folders]
                urls.append(original_url(weights, file_name))
                jobs.append(DownloadJob(path, tuple(dict.fromkeys(urls)), checksums=checksums.get(file_name, ())))
    failures = fetch_all(jobs, threads=2, offline=offline, progress=progress)
    told = list(dict.fromkeys(str(error) for _, error in failures))
    if len(told) == 1:
        raise failures[0][1]
    if failures:
        raise type(failures[0][1]).of(f"{len(failures)} files did not come", told)
    return paths


def _by_hand(weights: NamedWeights, missing: Sequence[str]) -> EtsamError:
    """Advice for a machine without network."""
    return DownloadError.of(
        f"{weights.name} cannot be downloaded without network; fetch these files on another machine, put them into "
        f"{weights_folder()}, then run `etsam weights verify {weights.name}`",
        [original_url(weights, file_name) for file_name in missing],
    )


def _zenodo_url() -> str:
    return os.environ.get("ETSAM_ZENODO_URL", "https://zenodo.org").rstrip("/")


def original_url(weights: NamedWeights, file_name: str) -> str:
    """Address of a file where its authors published it."""
    if weights.zenodo_record is None:
        return f"{weights.page}/{file_name}"
    return f"{_zenodo_url()}/records/{weights.zenodo_record}/files/{file_name}?download=1"


def _published_checksums(weights: NamedWeights) -> dict[str, tuple[tuple[str, str], ...]]:
    """File -> checksums as Zenodo's REST API lists them; empty, with a warning, if it cannot be asked."""
    if weights.zenodo_record is None:
        return {}
    url = f"{_zenodo_url()}/api/records/{weights.zenodo_record}"
    try:
        listed: dict[str, tuple[tuple[str, str], ...]] = {}
        for entry in get_json(url)["files"]:
            algorithm, _, digest = str(entry["checksum"]).rpartition(":")  # `md5:0123...`, or without `md5:`
            listed[entry.get("key") or entry["filename"]] = ((algorithm or "md5", digest),)
        return listed
    except NoNetworkError:
        raise
    except (DownloadError, AttributeError, KeyError, TypeError) as error:
        log.warning("no published checksums to compare with: %s: %r", url, error)
        return {}


def ensure_weights(weights: Mapping[str, Any]) -> None:
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
