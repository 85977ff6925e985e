"""Where each file of the published data set lies: on the CryoET Data Portal or in Harvard Dataverse.

Files go to `DATASET/RUN/tomogram` and `DATASET/RUN/target_mask`, as the published scripts put them.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from etsam.data.dataverse import PUBLISHED_DOI, DataverseFile, dataverse_url, list_dataset
from etsam.data.portal import PortalTomogram, choose_tomogram, find_runs, list_zarr
from etsam.data.published import PublishedRow
from etsam.errors import DownloadError
from etsam.io.download import Download, read_record
from etsam.io.web import Web
from etsam.volume import TOMOGRAM_SUFFIXES

log = logging.getLogger(__name__)

KINDS = ("tomograms", "masks")
"""What can be collected."""
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
    downloads
        Its files; of an OME-Zarr folder those below `NAME.zarr.part`.
    portal
        The portal's entry, if it comes from there.
    fault
        Why it cannot be had, or was not had; empty: nothing is wrong.
    """

    row: PublishedRow
    kind: str
    source: str
    target: Path | None = None
    downloads: list[Download] = field(default_factory=list)
    portal: PortalTomogram | None = None
    fault: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row.name} {'tomogram' if self.kind == 'tomograms' else 'mask'}"

    @property
    def is_there(self) -> bool:
        """Whether it has its name, which only what is complete gets."""
        return self.target is not None and self.target.exists()

    @property
    def size(self) -> int | None:
        """Bytes of all its files; None if that is not known."""
        if self.target is not None and self.target.is_file():
            return self.target.stat().st_size
        sizes = [item.size for item in self.downloads if item.size is not None]
        return sum(sizes) if self.downloads and len(sizes) == len(self.downloads) else None

    @property
    def is_folder(self) -> bool:
        """Whether it is an OME-Zarr folder."""
        return self.target is not None and self.target.suffix == ".zarr"


def plan(
    rows: Sequence[PublishedRow],
    output_dir: Path,
    *,
    kinds: Sequence[str] = KINDS,
    tomogram_format: str = "mrc",
    if_several: str = "error",
    server: str | None = None,
    portal: str | None = None,
    jobs: int = 4,
    web: Web | None = None,
) -> list[Wanted]:
    """Find out what has to be downloaded from where.

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
        See `etsam.data.portal.choose_tomogram`.
    server, portal
        Addresses of Dataverse and of the portal's GraphQL interface; None: the public ones.
    jobs
        Questions at the same time.
    web
        Connections.

    Returns
    -------
    list[Wanted]
        What was not found has a `fault`.

    Raises
    ------
    DownloadError
        If Dataverse cannot be asked.
    """
    web = web or Web()
    wanted = []
    for row in rows:
        if "tomograms" in kinds:
            wanted.append(Wanted(row, "tomograms", "portal" if row.on_portal else "Dataverse"))
        if "masks" in kinds and row.has_mask:
            wanted.append(Wanted(row, "masks", "Dataverse"))
    on_portal = [one for one in wanted if one.source == "portal"]
    if on_portal:
        _plan_portal(on_portal, output_dir, tomogram_format, if_several, portal, jobs, web)
    in_dataverse = [one for one in wanted if one.source == "Dataverse"]
    unfound = [one for one in on_portal if one.fault]
    folders = {}
    if in_dataverse or unfound:
        try:
            folders = list_dataset(dataverse_url(server), PUBLISHED_DOI, web)
        except DownloadError:
            if in_dataverse:
                raise
    for one in in_dataverse:
        _plan_dataverse(one, output_dir, folders)
    for one in unfound:
        _plan_copy(one, output_dir, folders)
    return wanted


def _plan_copy(one: Wanted, output_dir: Path, folders: dict[str, list[DataverseFile]]) -> None:
    """Take a tomogram that the portal does not give from Dataverse, if there is a copy, as the published scripts do."""
    copy = Wanted(one.row, one.kind, "Dataverse")
    _plan_dataverse(copy, output_dir, folders)
    if not copy.fault:
        log.info("%s: taken from Dataverse, because %s", one.name, one.fault)
        one.source, one.target, one.downloads, one.portal, one.fault = (
            copy.source, copy.target, copy.downloads, None, ""
        )  # fmt: skip


def _plan_dataverse(one: Wanted, output_dir: Path, folders: dict[str, list[DataverseFile]]) -> None:
    folder = f"{one.row.dataset_id}/{one.row.run_id}/{FOLDERS[one.kind]}"
    files = folders.get(folder, [])
    volumes = [file for file in files if file.name.lower().endswith(TOMOGRAM_SUFFIXES)]
    if len(volumes) != 1:
        names = ", ".join(file.name for file in files) or "nothing"
        one.fault = f"Dataverse ({PUBLISHED_DOI}) has to have one volume in {folder}, it has {names}"
        return
    file = volumes[0]
    one.target = output_dir / folder / file.name
    one.downloads = [Download(one.target, (file.url,), file.size, file.checksums)]
    if file.restricted and not one.is_there:
        one.fault = f"{file.url}: its owner restricts it; ask on the page of {PUBLISHED_DOI}"


def _plan_portal(
    wanted: Sequence[Wanted],
    output_dir: Path,
    tomogram_format: str,
    if_several: str,
    address: str | None,
    jobs: int,
    web: Web,
) -> None:
    try:
        runs = find_runs((int(one.row.run_id) for one in wanted), address)
    except DownloadError as error:
        for one in wanted:
            one.fault = str(error)
        return

    def locate(one: Wanted) -> None:
        row = one.row
        run = runs.get(int(row.run_id))
        try:
            if run is None:
                raise DownloadError(f"the portal has no run {row.run_id}; its numbers may have changed")
            if run.dataset_id != int(row.dataset_id):
                raise DownloadError(
                    f"run {row.run_id} of the portal belongs to dataset {run.dataset_id}, not {row.dataset_id}; its "
                    "numbers may have changed"
                )
            one.portal = choose_tomogram(
                run.tomograms,
                voxel_size_angstrom=row.voxel_size_angstrom,
                shape=row.shape,
                tomogram_id=row.tomogram_id,
                if_several=if_several,
            )
            folder = output_dir / row.dataset_id / row.run_id / FOLDERS[one.kind]
            if tomogram_format == "zarr":
                _locate_zarr(one, one.portal, folder)
            else:
                _locate_mrc(one, one.portal, folder, web)
        except DownloadError as error:
            one.fault = str(error)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(locate, wanted))


def _last_name(url: str) -> str:
    name = url.rstrip("/").rpartition("/")[2]
    if name in ("", ".", "..") or "\\" in name:
        raise DownloadError(f"the portal gives an address without a file: {url!r}")
    return name


def _locate_mrc(one: Wanted, tomogram: PortalTomogram, folder: Path, web: Web) -> None:
    if not tomogram.mrc_url:
        raise DownloadError(f"the portal has no MRC file of tomogram {tomogram.id}; try --format zarr")
    one.target = folder / _last_name(tomogram.mrc_url)
    # a file without record may be a piece: its size tells
    size = None if read_record(one.target) is not None else web.size_bytes(tomogram.mrc_url)
    one.downloads = [Download(one.target, (tomogram.mrc_url,), size)]


def _locate_zarr(one: Wanted, tomogram: PortalTomogram, folder: Path) -> None:
    if not (tomogram.zarr_url and tomogram.zarr_s3):
        raise DownloadError(f"the portal has no OME-Zarr of tomogram {tomogram.id}; try --format mrc")
    one.target = folder / _last_name(tomogram.zarr_url)
    if one.is_there:
        return
    part, base = zarr_part(one.target), tomogram.zarr_url.rstrip("/")
    one.downloads = [
        Download(part / key, (f"{base}/{key}",), size, keep_record=False) for key, size in list_zarr(tomogram)
    ]


def zarr_part(target: Path) -> Path:
    """Where an OME-Zarr folder grows until it is complete."""
    return target.with_name(f"{target.name}.part")
