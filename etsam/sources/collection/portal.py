"""Tomograms on the CryoET Data Portal: which there are for a run, which one is meant, what its folder holds.

The portal's own client asks the questions. Its downloads (`Tomogram.download_mrcfile`, `download_omezarr`) are not
used: version 4.9.0 writes whatever comes under the final name, the page of a 404 and half a file, too; a broken file
starts anew; the objects of an OME-Zarr folder come one by one (64 of 100 kB, 50 ms each answer: 7.7 s, here 1.3 s).
"""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from etsam.download import is_offline
from etsam.errors import ConfigError, DownloadError

if TYPE_CHECKING:
    from cryoet_data_portal import Run, Tomogram

VOXEL_SIZE_TOLERANCE = 0.01
"""Relative; lists and portal round differently, binning differs by much more."""

IF_SEVERAL = ("error", "default", "first")
"""Choice when voxel size and shape leave several tomograms: refuse; take the one that the portal shows; take the
first that it lists, as the published scripts do."""


def find_runs(run_ids: Iterable[int]) -> "dict[int, tuple[Run, list[Tomogram]]]":
    """Runs that the portal knows and their tomograms in its order, by number, in two questions whatever their number.

    The environment variable ETSAM_PORTAL_URL names another address of the portal's GraphQL interface.

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
    if is_offline():
        raise DownloadError("the CryoET Data Portal cannot be asked without network; unset ETSAM_OFFLINE")
    numbers = sorted(set(run_ids))
    try:
        client = Client(os.environ.get("ETSAM_PORTAL_URL") or None)
        runs: dict[int, tuple[Run, list[Tomogram]]] = {
            run.id: (run, []) for run in Run.find(client, [Run.id._in(numbers)])
        }
        for tomogram in Tomogram.find(client, [Tomogram.run_id._in(numbers)]):
            if tomogram.run_id in runs:
                runs[tomogram.run_id][1].append(tomogram)
    except (TransportError, RequestException, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DownloadError(
            f"the CryoET Data Portal cannot be asked: {reason}; check the connection, try again later."
        ) from error
    return runs


def shape_of(tomogram: "Tomogram") -> tuple[int, int, int]:
    """Sides of a tomogram of the portal, (Z, Y, X) in voxels."""
    return tomogram.size_z, tomogram.size_y, tomogram.size_x


def choose_tomogram(
    tomograms: "Sequence[Tomogram]",
    *,
    voxel_size_angstrom: float | None = None,
    shape: tuple[int, int, int] | None = None,
    tomogram_id: int | None = None,
    if_several: str = "error",
) -> "Tomogram":
    """Tomogram that a row of a list means.

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
    asked, left = [], list(tomograms)
    if tomogram_id is not None:
        asked.append(f"tomogram_id {tomogram_id}")
        left = [one for one in left if one.id == tomogram_id]
    elif voxel_size_angstrom is not None:
        asked.append(f"{voxel_size_angstrom:g} Å")
        tolerance = VOXEL_SIZE_TOLERANCE * voxel_size_angstrom
        left = [one for one in left if abs(one.voxel_spacing - voxel_size_angstrom) <= tolerance]
    if tomogram_id is None and shape is not None:
        asked.append(_sides(shape))
        left = [one for one in left if shape_of(one) == shape]
    if len(left) > 1 and if_several == "default":
        left = [one for one in left if one.is_visualization_default] or left
    if len(left) > 1 and if_several == "first":
        left = left[:1]
    if len(left) == 1:
        return left[0]
    choices = "; ".join(_describe(one) for one in left or tomograms)
    wanted = f" of {', '.join(asked)}" if asked else ""
    if not left:
        raise DownloadError(f"the portal has no tomogram{wanted} in this run, but {choices}")
    raise DownloadError(
        f"the portal has {len(left)} tomograms{wanted} in this run: {choices}; add a column tomogram_id to the list, "
        "or --if-several default"
    )


def _sides(shape: tuple[int, int, int]) -> str:
    return " x ".join(str(side) for side in shape)


def _describe(one: "Tomogram") -> str:
    shown = ", shown by the portal" if one.is_visualization_default else ""
    how = f"{one.reconstruction_method or 'method unknown'}, {one.processing or 'processing unknown'}"
    return f"{one.id} ({one.voxel_spacing:g} Å, {_sides(shape_of(one))}, {how}{shown})"


def list_zarr(tomogram: "Tomogram") -> list[tuple[str, int]]:
    """Objects of the OME-Zarr folder of a tomogram: (path below it, bytes), by the portal's public S3 bucket.

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

    address = urlsplit(tomogram.s3_omezarr_dir)
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
        reason = " ".join(str(error).split())[:200]
        raise DownloadError(f"{tomogram.s3_omezarr_dir}: cannot be listed: {reason}") from error
    objects = [(entry["Key"].removeprefix(prefix), int(entry["Size"])) for entry in entries]
    objects = [(key, size) for key, size in objects if key and not key.endswith("/")]  # some tools mark folders so
    unsafe = [key for key, _ in objects if key.startswith("/") or ".." in key.split("/") or "\\" in key]
    if not objects or unsafe:
        fault = f"has an object {unsafe[0]!r}" if unsafe else "holds nothing"
        raise DownloadError(f"{tomogram.s3_omezarr_dir}: {fault}")
    return objects
