"""Slices of an OME-Zarr, in a folder or behind a URL: one scale level, read chunk by chunk when a slice is asked for.

Zarr 2 with OME-NGFF 0.4, as the CryoET Data Portal stores tomograms, and Zarr 3 with 0.5. What is named may be an image
(its first level, the full resolution, is read) or a level of it (`tomo.zarr/1`).

A slice lies in a whole layer of chunks. The layer is kept, so that reading z = 0, 1, 2, ... decompresses each chunk
once. Memory: one layer, chunk depth x Y x X voxels (for the chunks of 256^3 that the Data Portal uses and 960 x 928
float32 voxels a slice 0.9 GB), and, while it is read, three times 64 MiB or one chunk. Of all volumes in a process
the two used last keep their layers: a tomogram and its mask.

Every pass over a volume reads it anew. A prediction makes three (grey values, two stages), so that a remote
tomogram is fetched three times; who has the room copies it first.
"""

import asyncio
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from etsam.errors import InputError
from etsam.volume.location import TOMOGRAM_SUFFIXES, Location, Url
from etsam.volume.ngff import Level, multiscale_of, read_level

if TYPE_CHECKING:
    import zarr

_log = logging.getLogger(__name__)

_SCHEMES = ("http", "https", "s3")
_ATTEMPTS = 3  # of each read over the network
_PAUSE_SECONDS = 2.0  # before the second attempt; twice as long before the third
_LARGE_LAYER_BYTES = 2 << 30  # worth a line: more than all else needs for a large tomogram
_PIECE_BYTES = 64 << 20  # one chunk of 256^3 float32; of smaller ones many are fetched at the same time
_HOLDERS = 2  # sources that keep a layer

_recent: "list[weakref.ref[ZarrSource]]" = []
_recent_lock = threading.Lock()  # volumes are read by threads


class ZarrSource:
    """Voxels of one level of an OME-Zarr; made by `open_zarr`.

    Parameters
    ----------
    location
        The array's group and path in one: `tomo.zarr/0`.
    array
        The array.
    level
        What the metadata say.
    where
        What messages call it.
    """

    def __init__(self, location: Location, array: "zarr.Array[Any]", level: Level, where: str) -> None:
        self._location, self._where, self._leading = location, where, level.leading
        shape = array.shape
        if len(shape) != level.leading + 3 or any(side != 1 for side in shape[:-3]) or 0 in shape:
            raise InputError(
                f"{where}: an array of shape {shape}; a tomogram has z, y, x, and one time and one channel at most"
            )
        if array.dtype.kind not in "biuf":
            raise InputError(f"{where}: voxels of {array.dtype}; a tomogram holds integers or real numbers")
        self.shape = (shape[-3], shape[-2], shape[-1])
        self.dtype = array.dtype.newbyteorder("=")
        self.voxel_size_angstrom, self.origin_angstrom = level.voxel_size_angstrom, level.origin_angstrom
        self.start = (0, 0, 0)
        self.remarks = level.remarks
        depth, height, width = array.chunks[-3:]
        self._depth = min(depth, self.shape[0])
        # rows and columns of a layer that are read together: a row of chunks, or less where chunks are large
        together = _PIECE_BYTES // (self._depth * height * width * self.dtype.itemsize)
        self._piece = height, width * max(1, together)
        layer_bytes = self._depth * self.shape[1] * self.shape[2] * self.dtype.itemsize
        if layer_bytes > _LARGE_LAYER_BYTES:
            self.remarks += (f"one layer of its chunks takes {layer_bytes / 1e9:.1f} GB of memory while it is read",)
        self.description = json.dumps([array.metadata.to_dict(), repr(level)], sort_keys=True, default=str)
        """All metadata that decide the content, as text."""
        self._opened: tuple[int, zarr.Array[Any]] | None = (os.getpid(), array)
        self._layer: tuple[int, np.ndarray] | None = None  # number, voxels
        self._reading = threading.Lock()

    def plane(self, z: int) -> np.ndarray:
        """Slice `z`, (Y, X)."""
        number = z // self._depth
        with self._reading:  # threads that want the same layer wait for it, and never keep two
            layer = self._layer  # one look: another volume's thread may take it away
            if layer is None or layer[0] != number:
                self._layer = None  # before the next one is read: never two
                _make_room(self)
                layer = number, self._read_layer(number)
                with _recent_lock:
                    if any(ref() is self for ref in _recent):  # else two others took its place meanwhile
                        self._layer = layer
            return layer[1][z - number * self._depth].copy()

    def read(self) -> np.ndarray:
        """Everything, (Z, Y, X)."""
        whole = np.empty(self.shape, dtype=self.dtype)
        for number in range(-(-self.shape[0] // self._depth)):
            self._read_layer(number, whole[number * self._depth : (number + 1) * self._depth])
        return whole

    def close(self) -> None:
        """Give back the layer of chunks."""
        self._layer = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_layer": None, "_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_reading": threading.Lock()}

    def _array(self) -> "zarr.Array[Any]":
        """The array, opened once in each process: connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            with _explained(self._location, self._where):
                array = _node(self._location)
            if array is None or not hasattr(array, "chunks"):
                raise InputError(f"{self._where}: cannot be read any more; was it moved?")
            self._opened = os.getpid(), array
        return self._opened[1]

    def _read_layer(self, number: int, out: np.ndarray | None = None) -> np.ndarray:
        begin, end = number * self._depth, min((number + 1) * self._depth, self.shape[0])
        layer = np.empty((end - begin, *self.shape[1:]), dtype=self.dtype) if out is None else out
        height, width = self._piece
        for y in range(0, self.shape[1], height):  # what is in flight is one piece, not the layer once more
            for x in range(0, self.shape[2], width):
                rows, columns = slice(y, y + height), slice(x, x + width)
                layer[:, rows, columns] = self._read((slice(begin, end), rows, columns))
        return layer

    def _read(self, region: tuple[slice, slice, slice]) -> np.ndarray:
        array = self._array()
        whole: tuple[int | slice, ...] = (*[0] * self._leading, *region)
        for attempt in range(_ATTEMPTS):
            try:
                return np.asarray(array[whole])
            except Exception as error:
                if not _is_transport(error):
                    raise self._damaged(region, error) from error
                if isinstance(self._location, Url) and attempt + 1 < _ATTEMPTS:
                    _log.info("%s: %s; trying again", self._where, _reason(error))
                    time.sleep(_PAUSE_SECONDS * 2**attempt)
                    continue
                raise InputError(f"{self._where}: cannot be read: {_reason(error)}{_advice(self._location)}") from error
        raise AssertionError("the last attempt returns or raises")

    def _damaged(self, region: tuple[slice, ...], error: Exception) -> InputError:
        """Find the chunk that cannot be decoded and name it; its file or key is what a person can replace."""
        array = self._array()
        steps = array.shards or array.chunks
        begin = [0] * self._leading + [part.start or 0 for part in region]
        end = [1] * self._leading + [
            side if part.stop is None else min(part.stop, side) for part, side in zip(region, self.shape, strict=True)
        ]
        corners = [range(low // step, -(-high // step)) for low, high, step in zip(begin, end, steps, strict=True)]
        for index in np.ndindex(*[len(corner) for corner in corners]):
            chunk = tuple(corner[i] for corner, i in zip(corners, index, strict=True))
            try:
                array[tuple(slice(i * step, (i + 1) * step) for i, step in zip(chunk, steps, strict=True))]
            except Exception as cause:
                key = array.metadata.encode_chunk_key(chunk)
                return InputError(f"{self._where}: the chunk {key} is damaged ({_reason(cause)}); copy it again")
        return InputError(f"{self._where}: cannot be decoded ({_reason(error)}); copy it again")


def _make_room(source: ZarrSource) -> None:
    """Let go of the layers of all but the sources used last, of which `source` is now one."""
    with _recent_lock:
        others = [ref for ref in _recent if ref() not in (None, source)]
        while len(others) >= _HOLDERS:
            oldest = others.pop(0)()
            if oldest is not None:
                oldest.close()
        _recent[:] = [*others, weakref.ref(source)]


def open_zarr(location: Location) -> ZarrSource:
    """Open a level of an OME-Zarr; only metadata are read.

    Parameters
    ----------
    location
        An image, or a level of it; a folder or URL.

    Raises
    ------
    InputError
        If it is not there, cannot be read, has no metadata of an image, or is something else than a tomogram; if the
        packages for it are not installed.
    """
    where = str(location)
    if isinstance(location, Url):
        scheme = location.partition("://")[0].lower()
        if scheme not in _SCHEMES:
            raise InputError(f"{where}: addresses of {scheme} are not read; allowed are {', '.join(_SCHEMES)}")
        if location.name.lower().endswith(TOMOGRAM_SUFFIXES):
            raise InputError(f"{where}: only OME-Zarr is read over the network; download the file first")
    else:
        location = location.absolute()  # Hydra may change the working directory
    with _explained(location, where):
        node = _node(location)
        wanted = None
        group = node
        if node is None or hasattr(node, "chunks"):  # a level, or nothing: what it lies in knows
            group, wanted = _node(location.parent), location.name
        multiscale = None if group is None or hasattr(group, "chunks") else multiscale_of(group.attrs.asdict())
        if multiscale is None:
            raise _no_image(location, where, node)
        level = read_level(multiscale, wanted, where)
        root = location if wanted is None else location.parent
        place = Url(f"{root}/{level.path}") if isinstance(root, Url) else root / level.path
        array = node if node is not None and place == location else _node(place)
        if array is None or not hasattr(array, "chunks"):
            raise InputError(f"{where}: the level {level.path} that the metadata name is not there; copy it again")
        return ZarrSource(place, array, level, where)


def _node(location: Location) -> Any:
    """Open a group or array; None if there is none."""
    import zarr
    from zarr.storage import FsspecStore, LocalStore

    store: FsspecStore | LocalStore
    if isinstance(location, Url):
        options = {"anon": True} if location.lower().startswith("s3://") else {}
        store = FsspecStore.from_url(str(location), storage_options=options, read_only=True)
    else:
        store = LocalStore(location, read_only=True)
    try:
        return zarr.open(store, mode="r", use_consolidated=False)
    except FileNotFoundError:  # zarr's own for a folder or address without metadata is one, too
        return None


def _no_image(location: Location, where: str, node: Any) -> InputError:
    if node is None:
        remote = isinstance(location, Url)
        hint = "no Zarr at this address (404); check it" if remote else "no Zarr metadata in it; is the copy complete?"
        return InputError(f"{where}: {hint}")
    if hasattr(node, "chunks"):
        return InputError(
            f"{where}: a bare Zarr array without OME metadata, so that its axes and voxel size are unknown; convert it"
        )
    images: list[str] = []
    if not isinstance(location, Url):  # a web server cannot list what it has
        images = sorted(name for name, child in node.groups() if multiscale_of(child.attrs.asdict()) is not None)
    hint = f"did you mean {' or '.join(f'{where}/{name}' for name in images[:3])}?" if images else "name an image in it"
    return InputError(f"{where}: a Zarr group without `multiscales`, so no OME-Zarr image; {hint}")


@contextmanager
def _explained(location: Location, where: str) -> Iterator[None]:
    """Turn what zarr and the network raise on opening into one line."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"{where}: reading OME-Zarr needs a package that is not installed ({error}); pip install 'etsam[zarr]'"
        ) from error
    except Exception as error:
        if _is_transport(error):
            raise InputError(f"{where}: cannot be read: {_reason(error)}{_advice(location)}") from error
        raise InputError(f"{where}: the Zarr metadata are damaged ({_reason(error)}); copy it again") from error


def _is_transport(error: BaseException) -> bool:
    """True if the disk or the network is at fault, not the content."""
    network = type(error).__module__.startswith(("aiohttp.", "botocore.", "aiobotocore."))
    # OSErrors of the system have a number; bz2 and gzip raise some without one for what they cannot decode
    system = isinstance(error, OSError) and error.errno is not None
    return network or system or isinstance(error, asyncio.TimeoutError)


def _reason(error: BaseException) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"the server answered {status} {getattr(error, 'message', '')}".rstrip()
    if isinstance(error, asyncio.TimeoutError):
        return "the server did not answer in time"
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _advice(location: Location) -> str:
    return "; check the address and the network" if isinstance(location, Url) else ""
