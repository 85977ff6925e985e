"""Reader for napari: what `read_volume` opens, slice by slice, with its scale in nm."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from etsam.errors import EtsamError
from etsam.viewer.lazy_array import LazyArray
from etsam.volume import Volume, locate, read_volume, strip_suffix
from etsam.volume.location import TOMOGRAM_SUFFIXES, ZARR_SUFFIXES, absolute

LayerData = tuple[Any, dict[str, Any], str]
_CLIP_PERCENT = (1.0, 99.0)
_LABELS = ("_mask", "_instances", "_labels")
_READ = (*TOMOGRAM_SUFFIXES, *ZARR_SUFFIXES)


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerData]] | None:
    """Reader of files that are tomograms by their names; None for others, which napari gives to other plugins."""
    paths = [path] if isinstance(path, str) else list(path)
    return read_layers if all(str(one).lower().rstrip("/").endswith(_READ) for one in paths) else None


def read_layers(path: str | Sequence[str]) -> list[LayerData]:
    """Layers of files: masks and instances as labels, in memory so that they can be painted; others as images, lazily.

    Raises
    ------
    InputError
        If a file cannot be read.
    """
    return [layer_of(read_volume(one, warn=False)) for one in ([path] if isinstance(path, str) else path)]


def layer_of(volume: Volume) -> LayerData:
    """Layer of a volume that has a path."""
    assert volume.path is not None
    name = strip_suffix(volume.path)
    options: dict[str, Any] = {"name": name, "metadata": {"path": absolute(volume.path)}, **placed(volume)}
    if name.endswith(_LABELS) and volume.dtype.kind in "iu":
        return np.abs(volume.read()), options | {"opacity": 0.6}, "labels"  # int8: 255 is -1
    array = LazyArray(volume, volume.dtype)
    return array, options | {"contrast_limits": contrast_of(array), "multiscale": False}, "image"


def placed(volume: Volume) -> dict[str, Any]:
    """Scale and place of a layer in nm; in voxels where the voxel size is unknown."""
    size = volume.voxel_size_angstrom
    if size is None:
        return {}
    origin = tuple(value / 10 for value in volume.origin_angstrom)
    return {"scale": tuple(value / 10 for value in size), "translate": origin, "units": ("nm", "nm", "nm")}


def contrast_of(array: LazyArray) -> tuple[float, float]:
    """Grey values between which the middle slice lies, but for 1 % at either end."""
    plane = array.plane(array.shape[0] // 2)[::2, ::2].astype(np.float32)
    values = plane[np.isfinite(plane)]
    low, high = np.percentile(values, _CLIP_PERCENT) if values.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def volume_of(layer: Any) -> Volume:
    """File behind a layer that this reader made; raises `EtsamError` if there is none."""
    path = layer.metadata.get("path") if layer is not None else None
    if path is None:
        raise EtsamError("the layer is of no file that etsam opened; open the tomogram with the reader of etsam.")
    return read_volume(locate(path), warn=False)
