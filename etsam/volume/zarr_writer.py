"""Writes a volume as OME-Zarr slice by slice, with memory for a layer of chunks, whole or not at all.

Zarr 2 with OME-NGFF 0.4, not 0.5: the CryoET Data Portal stores that, programs that need zarr 2 (copick) read nothing
else, and everything that reads 0.5 (napari with ome-zarr 0.12 or newer, Neuroglancer) reads 0.4 too.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from etsam.errors import OutputError
from etsam.volume.atomic import atomic_folder, output_error
from etsam.volume.ngff import new_attributes
from etsam.volume.plane_checks import checked_plane, refuse_missing, slice_number, three_sides
from etsam.volume.volume import Volume

if TYPE_CHECKING:
    import zarr

_CHUNK = (32, 128, 128)  # 2 MiB of float32, 0.5 MiB of a mask: about what viewers fetch at once
_SMALLEST_SIDE = 64  # halving goes on while a side is longer
_SIGNS_OF_IMAGE = (".zgroup", "zarr.json")


class ZarrWriter:
    """Context manager that writes one OME-Zarr; `writer[z] = plane` in any order, fastest in the order of z.

    The folder appears under its name when the block ends without an exception, and then holds every slice and all
    levels; before, it is a hidden folder beside it, removed if anything goes wrong. Memory: one layer of 32 slices,
    at the end two and a half. Each level has half the voxels of the one before along every axis, down to 64: of
    integers every second voxel, of real numbers means. Chunks that hold nothing but 0 are not stored.

    Parameters
    ----------
    path
        The folder to write; what it lies in must exist.
    shape
        (Z, Y, X).
    dtype
        Integers are masks or numbered instances, and viewers are told so; real numbers are grey values, or logits.
    like
        The volume that this one lies on: voxel size and origin are taken over. OME-Zarr has no place for `start`.
    voxel_size_angstrom
        (z, y, x) in Å, instead of that of `like`. Without either the axes have no unit, and the scale is 1.
    overwrite
        Replace an existing Zarr folder; never a folder of other things.

    Raises
    ------
    OutputError
        On entering: `path` exists, its folder cannot be written, zarr is not installed. Later: the disk is full, `path`
        appeared meanwhile, a value is too large for a small float.
    ValueError
        If the arguments, or a slice's shape or values, do not fit together.
    RuntimeError
        On leaving, if slices are missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: tuple[int, int, int],
        dtype: DTypeLike,
        like: Volume | None = None,
        voxel_size_angstrom: tuple[float, float, float] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype).newbyteorder("=")
        if self.dtype.kind not in "iuf":
            raise ValueError(f"dtype {self.dtype}: integers and real numbers are written; masks are uint8")
        self.shape = three_sides(shape, 2**63)
        if voxel_size_angstrom is None and like is not None:
            voxel_size_angstrom = like.voxel_size_angstrom
        self._voxel_size = voxel_size_angstrom
        self._origin = like.origin_angstrom if like is not None else (0.0, 0.0, 0.0)
        self._overwrite = overwrite
        self._written = np.zeros(self.shape[0], dtype=bool)
        self._depth = min(_CHUNK[0], self.shape[0])
        self._number = -1  # of the layer in memory
        self._changed = False
        self._layer = np.zeros((0, *self.shape[1:]), dtype=self.dtype)
        self._levels: list[zarr.Array[Any]] = []
        self._stack = ExitStack()

    def __enter__(self) -> "ZarrWriter":
        try:
            import zarr
        except ImportError as error:
            raise OutputError(
                f"{self.path}: writing OME-Zarr needs the package zarr; pip install 'etsam[zarr]'"
            ) from error
        with ExitStack() as stack:
            part = stack.enter_context(atomic_folder(self.path, self._overwrite, replaceable=_is_image))
            # zarr writes in threads of its own, which an interrupt of this one (Ctrl-C, SIGTERM) does not stop: they
            # would go on in a folder that is being removed. Leaving the pool waits for what is under way.
            self._pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="etsam-zarr"))
            group = self._attempt(zarr.open_group, part, mode="w", zarr_format=2)
            self._levels = self._attempt(self._create_levels, group)
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return self._stack.__exit__(kind, error, traceback)
        finally:
            self._levels = []

    def __setitem__(self, z: int, plane: np.ndarray) -> None:
        if not self._levels:
            raise ValueError(f"{self.path}: not open; use ZarrWriter in a with statement")
        index = slice_number(z, self.shape[0])
        converted = checked_plane(plane, self.shape, self.dtype, self.path)
        self._hold(index // self._depth)
        self._layer[index % self._depth] = converted
        self._changed = True
        self._written[index] = True

    def __getitem__(self, z: int) -> np.ndarray:
        """Slice `z` (Y, X) as it was written, so that an output can be the input of a further step."""
        index = slice_number(z, self.shape[0])
        if not self._levels or not self._written[index]:
            raise ValueError(f"{self.path}: slice {index} has not been written")
        self._hold(index // self._depth)
        return self._layer[index % self._depth].copy()

    def _hold(self, number: int) -> None:
        """Have this layer of chunks in memory, after storing the one that was."""
        if number == self._number:
            return
        self._store()
        begin, end = number * self._depth, min((number + 1) * self._depth, self.shape[0])
        if self._layer.shape[0] != end - begin:
            self._layer = np.zeros((end - begin, *self.shape[1:]), dtype=self.dtype)
        if self._written[begin:end].any():
            self._layer[...] = self._attempt(self._levels[0].__getitem__, slice(begin, end))
        self._number = number

    def _store(self) -> None:
        if self._changed:
            begin = self._number * self._depth
            self._attempt(self._levels[0].__setitem__, slice(begin, begin + len(self._layer)), self._layer)
            self._changed = False

    def _create_levels(self, group: "zarr.Group") -> "list[zarr.Array[Any]]":
        import numcodecs

        shapes = [self.shape]
        while max(shapes[-1]) > _SMALLEST_SIDE:
            z, y, x = (-(-side // 2) for side in shapes[-1])
            shapes.append((z, y, x))
        labels = self.dtype.kind != "f"
        name = self.path.name.removesuffix(".zarr")
        group.attrs.update(new_attributes(name, len(shapes), self._voxel_size, self._origin, labels))
        compressor = numcodecs.Blosc(cname="zstd", clevel=3, shuffle=numcodecs.Blosc.SHUFFLE)
        return [
            group.create_array(
                str(number),
                shape=shape,
                chunks=tuple(min(step, side) for step, side in zip(_CHUNK, shape, strict=True)),
                dtype=self.dtype.newbyteorder("<"),
                compressors=compressor,
                fill_value=0,
                chunk_key_encoding={"name": "v2", "separator": "/"},  # as OME-NGFF 0.4 asks for
            )
            for number, shape in enumerate(shapes)
        ]

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Make the further levels; runs before the folder is flushed to disk and renamed."""
        if kind is not None:
            return
        refuse_missing(self._written, self.path)
        self._store()
        self._layer = np.zeros((0, *self.shape[1:]), dtype=self.dtype)  # makes room for two halves below
        for fine, coarse in zip(self._levels, self._levels[1:], strict=False):
            depth = coarse.chunks[0]
            for begin in range(0, coarse.shape[0], depth):
                layer = np.empty((min(depth, coarse.shape[0] - begin), *coarse.shape[1:]), dtype=self.dtype)
                half = max(depth // 2, 1)
                for first in range(0, len(layer), half):
                    last = min(first + half, len(layer))
                    block = slice(2 * (begin + first), 2 * (begin + last))
                    layer[first:last] = halved(self._attempt(fine.__getitem__, block))
                self._attempt(coarse.__setitem__, slice(begin, begin + len(layer)), layer)

    def _attempt(self, function: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return self._pool.submit(function, *arguments, **named).result()
        except OSError as error:
            raise output_error(error, self.path) from error


def halved(block: np.ndarray) -> np.ndarray:
    """Half the voxels along each axis, rounded up: of integers every second, of real numbers means of what is there.

    Parameters
    ----------
    block
        (Z, Y, X).

    Examples
    --------
    >>> halved(np.array([[[1, 2, 3]]])).tolist()
    [[[1, 3]]]
    >>> halved(np.array([[[1.0, 2.0, 3.0]]])).tolist()
    [[[1.5, 3.0]]]
    """
    if block.dtype.kind != "f":
        return block[::2, ::2, ::2]
    for axis in range(3):
        begins = np.arange(0, block.shape[axis], 2)
        counts = np.minimum(2, block.shape[axis] - begins).astype(block.dtype)
        shape = [1, 1, 1]
        shape[axis] = len(begins)
        block = np.add.reduceat(block, begins, axis=axis) / counts.reshape(shape)
    return block


def _is_image(folder: Path) -> bool:
    return any((folder / sign).is_file() for sign in _SIGNS_OF_IMAGE)
