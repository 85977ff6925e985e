"""Plan of the published data set: the place of each file on the CryoET Data Portal or in Harvard Dataverse.

Files go to `DATASET/RUN/tomogram` and `DATASET/RUN/target_mask`, as the published scripts put them.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from etsam.download import DownloadJob, read_record, size_bytes
from etsam.errors import DownloadError
from etsam.sources.collection.dataverse import PUBLISHED_DOI, DataverseFile, list_dataset
from etsam.sources.collection.lists import PublishedRow
from etsam.sources.collection.portal import choose_tomogram, find_runs, list_zarr
from etsam.volume import TOMOGRAM_SUFFIXES

if TYPE_CHECKING:
    from cryoet_data_portal import Run, Tomogram

log = logging.getLogger(__name__)

KINDS = ("tomograms", "masks")
"""Kinds of files that can be collected."""
FORMATS = ("mrc", "zarr")
"""Formats in which the portal has tomograms."""

FOLDERS = {"tomograms": "tomogram", "masks": "target_mask"}
"""Folder of each kind below DATASET/RUN."""


@dataclass
class Wanted:
    """One tomogram or mask to collect.

    Attributes
    ----------
    row
        Of the list.
    kind
        `tomograms` or `masks`.
    source
        `portal` or `Dataverse`.
    target
        The file, or OME-Zarr folder, in the collection; None if it was not found anywhere.
    jobs
        Its files; of an OME-Zarr folder those below `NAME.zarr.part`.
    tomogram
        The portal's entry, if it comes from there.
    fault
        Why it cannot be had, or was not had; empty: nothing is wrong.
    """

    row: PublishedRow
    kind: str
    source: str = "Dataverse"
    target: Path | None = None
    jobs: list[DownloadJob] = field(default_factory=list)
    tomogram: "Tomogram | None" = None
    fault: str = ""

    @property
    def name(self) -> str:
        """Name for messages, such as `10000/245 mask`."""
        return f"{self.row.name} {self.kind.removesuffix('s')}"

    @property
    def folder(self) -> str:
        """Folder in the collection and in Dataverse, such as `10000/245/target_mask`."""
        return f"{self.row.name}/{FOLDERS[self.kind]}"

    @property
    def is_there(self) -> bool:
        """True once it has its name, which only what is complete gets."""
        return self.target is not None and self.target.exists()

    @property
    def size(self) -> int | None:
        """Bytes of all its files; None if that is not known."""
        if self.target is not None and self.target.is_file():
            return self.target.stat().st_size
        sizes = [job.size for job in self.jobs if job.size is not None]
        return sum(sizes) if self.jobs and len(sizes) == len(self.jobs) else None

    @property
    def is_zarr(self) -> bool:
        """True for an OME-Zarr folder."""
        return self.target is not None and self.target.suffix == ".zarr"


def zarr_part(target: Path) -> Path:
    """Folder in which an OME-Zarr volume grows until it is complete."""
    return target.with_name(f"{target.name}.part")


def plan(
    rows: Sequence[PublishedRow],
    output_dir: Path,
    *,
    kinds: Sequence[str] = KINDS,
    tomogram_format: str = "mrc",
    if_several: str = "error",
    threads: int = 4,
) -> list[Wanted]:
    """Files to download, and from where.

    Parameters
    ----------
    rows
        Of the list.
    output_dir
        Of the collection.
    kinds
        Of `KINDS`.
    tomogram_format
        Of the portal's tomograms, of `FORMATS`; Dataverse has its files in one format.
    if_several
        See `etsam.sources.collection.portal.choose_tomogram`.
    threads
        Questions at the same time.

    Returns
    -------
    list[Wanted]
        What was not found has a `fault`.

    Raises
    ------
    DownloadError
        If Dataverse cannot be asked.
    """
    wanted = [
        Wanted(row, kind, "portal" if kind == "tomograms" and row.on_portal else "Dataverse")
        for row in rows
        for kind in KINDS
        if kind in kinds and (kind == "tomograms" or row.has_mask)
    ]
    on_portal = [one for one in wanted if one.source == "portal"]
    if on_portal:
        _locate_on_portal(on_portal, output_dir, tomogram_format, if_several, threads)
    in_dataverse = [one for one in wanted if one.source == "Dataverse"]
    unfound = [one for one in on_portal if one.fault]
    folders: dict[str, list[DataverseFile]] = {}
    if in_dataverse or unfound:
        try:
            folders = list_dataset()
        except DownloadError:
            if in_dataverse:
                raise
    for one in in_dataverse:
        _locate_in_dataverse(one, output_dir, folders)
    for one in unfound:  # Dataverse may have a copy, which the published scripts take
        copy = Wanted(one.row, one.kind)
        _locate_in_dataverse(copy, output_dir, folders)
        if not copy.fault:
            log.info("%s: taken from Dataverse, because %s", one.name, one.fault)
            wanted[wanted.index(one)] = copy
    return wanted


def _locate_in_dataverse(one: Wanted, output_dir: Path, folders: Mapping[str, list[DataverseFile]]) -> None:
    files = folders.get(one.folder, [])
    volumes = [file for file in files if file.name.lower().endswith(TOMOGRAM_SUFFIXES)]
    if len(volumes) != 1:
        names = ", ".join(file.name for file in files) or "nothing"
        one.fault = f"Dataverse ({PUBLISHED_DOI}) has to have one volume in {one.folder}, it has {names}"
        return
    file = volumes[0]
    one.target = output_dir / one.folder / file.name
    one.jobs = [DownloadJob(one.target, (file.url,), file.size, file.checksums)]
    if file.restricted and not one.is_there:
        one.fault = f"{file.url}: its owner restricts it; ask on the page of {PUBLISHED_DOI}"


def _locate_on_portal(
    wanted: Sequence[Wanted], output_dir: Path, tomogram_format: str, if_several: str, threads: int
) -> None:
    def locate(one: Wanted) -> None:
        try:
            one.tomogram = _choose(one.row, runs, if_several)
            (_locate_zarr if tomogram_format == "zarr" else _locate_mrc)(one, one.tomogram, output_dir / one.folder)
        except DownloadError as error:
            one.fault = str(error)

    try:
        runs = find_runs(int(one.row.run_id) for one in wanted)
    except DownloadError as error:
        for one in wanted:
            one.fault = str(error)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(locate, wanted))


def _choose(row: PublishedRow, runs: "Mapping[int, tuple[Run, list[Tomogram]]]", if_several: str) -> "Tomogram":
    if int(row.run_id) not in runs:
        raise DownloadError(f"the portal has no run {row.run_id}; its numbers may have changed")
    run, tomograms = runs[int(row.run_id)]
    if run.dataset_id != int(row.dataset_id):
        raise DownloadError(
            f"run {row.run_id} of the portal belongs to dataset {run.dataset_id}, not {row.dataset_id}; its numbers "
            "may have changed"
        )
    return choose_tomogram(
        tomograms,
        voxel_size_angstrom=row.voxel_size_angstrom,
        shape=row.shape,
        tomogram_id=row.tomogram_id,
        if_several=if_several,
    )


def _locate_mrc(one: Wanted, tomogram: "Tomogram", folder: Path) -> None:
    url = tomogram.https_mrc_file or ""
    one.target = folder / _last_name(url, tomogram, "MRC file", "zarr")
    # a file without record may be a piece: its size tells
    size = None if read_record(one.target) is not None else size_bytes(url)
    one.jobs = [DownloadJob(one.target, (url,), size)]


def _locate_zarr(one: Wanted, tomogram: "Tomogram", folder: Path) -> None:
    url = (tomogram.https_omezarr_dir or "").rstrip("/")
    one.target = folder / _last_name(url, tomogram, "OME-Zarr", "mrc")
    if not one.is_there:
        part = zarr_part(one.target)
        one.jobs = [
            DownloadJob(part / key, (f"{url}/{key}",), size, keep_record=False) for key, size in list_zarr(tomogram)
        ]


def _last_name(url: str, tomogram: "Tomogram", what: str, other_format: str) -> str:
    name = url.rpartition("/")[2]
    if name in ("", ".", "..") or "\\" in name:
        raise DownloadError(f"the portal has no {what} of tomogram {tomogram.id}; try --format {other_format}")
    return name
