"""Tomograms on the CryoET Data Portal: which there are for a run, which one is meant, where its files lie."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from etsam.errors import ConfigError, DownloadError

_VOXEL_SIZE_TOLERANCE = 0.01  # relative; lists and portal round differently, binning differs by much more

IF_SEVERAL = ("error", "default", "first")
"""What to do when voxel size and shape leave several tomograms: refuse; take the one that the portal shows; take the
first that it lists, as the published scripts do."""


@dataclass(frozen=True)
class PortalTomogram:
    """One reconstruction of a run.

    Attributes
    ----------
    id
        Number on the portal; the portal says that its numbers may change.
    voxel_size_angstrom
        Equal along all axes.
    shape
        (Z, Y, X).
    processing, reconstruction
        Such as `denoised`, `WBP`.
    is_default
        Whether it is the one that the portal shows.
    mrc_url
        Its MRC file; empty: none.
    zarr_url, zarr_s3
        Its OME-Zarr folder by HTTPS and in its S3 bucket; empty: none.
    """

    id: int
    voxel_size_angstrom: float
    shape: tuple[int, int, int]
    processing: str
    reconstruction: str
    is_default: bool
    mrc_url: str
    zarr_url: str
    zarr_s3: str

    def __str__(self) -> str:
        shown = ", shown by the portal" if self.is_default else ""
        sides = " x ".join(str(side) for side in self.shape)
        return f"{self.id} ({self.voxel_size_angstrom:g} Å, {sides}, {self.reconstruction}, {self.processing}{shown})"


@dataclass
class PortalRun:
    """A run with its tomograms, in the portal's order."""

    id: int
    dataset_id: int
    tomograms: list[PortalTomogram] = field(default_factory=list)


def find_runs(run_ids: Iterable[int], url: str | None = None) -> dict[int, PortalRun]:
    """Ask the portal for runs and their tomograms, in two questions whatever their number.

    Parameters
    ----------
    run_ids
        Numbers of runs.
    url
        Address of the portal's GraphQL interface; default: ETSAM_PORTAL_URL, or the portal's.

    Returns
    -------
    dict[int, PortalRun]
        Those that the portal knows.

    Raises
    ------
    ConfigError
        If the package cryoet-data-portal is missing.
    DownloadError
        If the portal cannot be reached or refuses.
    """
    try:
        from cryoet_data_portal import Client, Run, Tomogram
        from gql.transport.exceptions import TransportError
        from requests import RequestException
    except ImportError as error:
        raise ConfigError(
            f"tomograms of the portal need the package cryoet-data-portal ({error}); pip install 'etsam[data]'."
        ) from error
    address = url or os.environ.get("ETSAM_PORTAL_URL") or None
    numbers = sorted(set(run_ids))
    try:
        client = Client(address)
        runs = {run.id: PortalRun(run.id, run.dataset_id) for run in Run.find(client, [Run.id._in(numbers)])}
        for tomogram in Tomogram.find(client, [Tomogram.run_id._in(numbers)]):
            if tomogram.run_id in runs:
                runs[tomogram.run_id].tomograms.append(_tomogram(tomogram))
    except (TransportError, RequestException, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DownloadError(
            f"the CryoET Data Portal{f' at {address}' if address else ''} cannot be asked: {reason}; check the "
            "connection, try again later."
        ) from error
    return runs


def _tomogram(found: Any) -> PortalTomogram:
    return PortalTomogram(
        id=found.id,
        voxel_size_angstrom=float(found.voxel_spacing),
        shape=(int(found.size_z), int(found.size_y), int(found.size_x)),
        processing=str(found.processing or "processing unknown"),
        reconstruction=str(found.reconstruction_method or "method unknown"),
        is_default=bool(found.is_visualization_default),
        mrc_url=found.https_mrc_file or "",
        zarr_url=found.https_omezarr_dir or "",
        zarr_s3=found.s3_omezarr_dir or "",
    )


def choose_tomogram(
    tomograms: Sequence[PortalTomogram],
    *,
    voxel_size_angstrom: float | None = None,
    shape: tuple[int, int, int] | None = None,
    tomogram_id: int | None = None,
    if_several: str = "error",
) -> PortalTomogram:
    """Find the tomogram that a row of a list means.

    The rule: the one with the row's `tomogram_id`, if it has one. Else those within 1 % of its voxel size, and of these
    the ones of its shape; what a row does not say is not compared. If several are left, `if_several` decides.

    Parameters
    ----------
    tomograms
        Of the run.
    voxel_size_angstrom, shape, tomogram_id
        As the row says; shape (Z, Y, X).
    if_several
        See `IF_SEVERAL`.

    Raises
    ------
    DownloadError
        If none fits, or several do; lists the choices.
    """
    if not tomograms:
        raise DownloadError("the portal lists no tomogram of this run")
    wanted = []
    left = list(tomograms)
    if tomogram_id is not None:
        wanted.append(f"tomogram_id {tomogram_id}")
        left = [one for one in left if one.id == tomogram_id]
    else:
        if voxel_size_angstrom is not None:
            wanted.append(f"{voxel_size_angstrom:g} Å")
            size, tolerance = voxel_size_angstrom, _VOXEL_SIZE_TOLERANCE * voxel_size_angstrom
            left = [one for one in left if abs(one.voxel_size_angstrom - size) <= tolerance]
        if shape is not None:
            wanted.append(" x ".join(str(side) for side in shape))
            left = [one for one in left if one.shape == shape]
    if len(left) > 1 and if_several == "default":
        left = [one for one in left if one.is_default] or left
    if len(left) > 1 and if_several == "first":
        left = left[:1]
    if len(left) == 1:
        return left[0]
    choices = "; ".join(str(one) for one in left or tomograms)
    asked = f" of {', '.join(wanted)}" if wanted else ""
    if not left:
        raise DownloadError(f"the portal has no tomogram{asked} in this run, but {choices}")
    raise DownloadError(
        f"the portal has {len(left)} tomograms{asked} in this run: {choices}; add a column tomogram_id to the list, or "
        "--if-several default"
    )


def list_zarr(tomogram: PortalTomogram) -> list[tuple[str, int]]:
    """List (path below the OME-Zarr folder, bytes) of every object, by the portal's public S3 bucket.

    The environment variable BOTO_ENDPOINT_URL names another S3 server, as for the portal's own client.

    Raises
    ------
    DownloadError
        If the bucket cannot be listed, or the folder is empty.
    """
    import boto3  # comes with cryoet-data-portal
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    address = urlsplit(tomogram.zarr_s3)
    prefix = address.path.strip("/") + "/"
    try:
        # any region: the bucket is public, and S3 leads to the right one
        client = boto3.client(
            "s3",
            endpoint_url=os.environ.get("BOTO_ENDPOINT_URL"),
            region_name=os.environ.get("AWS_REGION", "us-west-2"),
            config=Config(signature_version=UNSIGNED),
        )
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=address.netloc, Prefix=prefix)
        entries = [entry for page in pages for entry in page.get("Contents", ())]
    except (BotoCoreError, ClientError) as error:
        raise DownloadError(f"{tomogram.zarr_s3}: cannot be listed: {' '.join(str(error).split())[:200]}") from error
    objects = [(entry["Key"].removeprefix(prefix), int(entry["Size"])) for entry in entries]
    objects = [(key, size) for key, size in objects if key and not key.endswith("/")]  # some tools mark folders so
    unsafe = [key for key, _ in objects if key.startswith("/") or ".." in key.split("/") or "\\" in key]
    if not objects or unsafe:
        raise DownloadError(f"{tomogram.zarr_s3}: {f'has an object {unsafe[0]!r}' if unsafe else 'holds nothing'}")
    return objects
