"""The writer for a format: MRC, or OME-Zarr where the name ends in `.zarr`."""

import os
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from etsam.errors import OutputError
from etsam.volume.location import ZARR_SUFFIXES
from etsam.volume.mrc_writer import MrcWriter, PackedMrcWriter
from etsam.volume.volume import Volume

_MRC_SUFFIXES = (".mrc", ".rec", ".map", ".ccp4", ".st")


def refuse_unknown_suffix(path: str | os.PathLike[str]) -> None:
    """Raise `OutputError` for a name that ends like a format which is not written: other programs go by it."""
    name = os.path.basename(os.fspath(path)).lower()
    allowed = (*_MRC_SUFFIXES, *(f"{suffix}.gz" for suffix in _MRC_SUFFIXES), *ZARR_SUFFIXES)
    if not name.endswith(allowed):
        raise OutputError(
            f"{path}: no format of that name is written; allowed are {' '.join(_MRC_SUFFIXES)}, these with .gz, and "
            ".zarr."
        )


class VolumeWriter(Protocol):
    """A volume being written, used in a `with` statement; `writer[z] = plane` in any order, `writer[z]` reads it back.

    It appears under its name when the block ends without an exception, and then holds every slice.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype

    def __enter__(self) -> "VolumeWriter": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None: ...

    def __setitem__(self, z: int, plane: np.ndarray, /) -> None: ...

    def __getitem__(self, z: int, /) -> np.ndarray: ...


def volume_writer(
    path: str | os.PathLike[str],
    shape: tuple[int, int, int],
    dtype: DTypeLike,
    like: Volume | None = None,
    overwrite: bool = False,
) -> VolumeWriter:
    """Make the writer that the name asks for.

    Parameters
    ----------
    path
        Ends in `.zarr` for OME-Zarr, or in a suffix of MRC, compressed if `.gz` follows.
    shape
        (Z, Y, X).
    dtype
        Of the voxels. bool is a mask, which programs expect as int8 in MRC (mode 0) and as uint8 in OME-Zarr.
    like
        The volume that this one lies on: voxel size and origin are taken over.
    overwrite
        Replace what is there.

    Raises
    ------
    OutputError
        If the name ends in anything else; and as of `MrcWriter` and `ZarrWriter`.
    """
    refuse_unknown_suffix(path)
    zarr = str(path).lower().endswith(ZARR_SUFFIXES)
    kind = np.dtype(dtype)
    if zarr:
        from etsam.volume.zarr_writer import ZarrWriter

        return ZarrWriter(path, shape, np.uint8 if kind == np.bool_ else kind, like=like, overwrite=overwrite)
    if str(path).lower().endswith(".gz"):
        return PackedMrcWriter(path, shape, np.int8 if kind == np.bool_ else kind, like=like, overwrite=overwrite)
    return MrcWriter(path, shape, np.int8 if kind == np.bool_ else kind, like=like, overwrite=overwrite)
