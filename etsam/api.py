"""The Python interface: `etsam.load` and `etsam.segment`."""

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import torch

    from etsam.prediction.segmenter import Segmenter
    from etsam.volume import Slices, Volume

_COMMAND_LINE = (
    *("input", "also", "strict", "output_dir", "output_subfolders", "overwrite", "resume", "debug", "write_logits"),
    *("write_instances", "write_preview", "write_page", "write_chimerax"),
    *("output_format", "output_infix", "overview", "inputs", "writer", "segmenter", "paths", "local", "trainer"),
    "hydra",
)
_HONOURED = (  # settings of configs/predict.yaml, and their groups, that mean something for arrays
    *("net", "weights", "stage1", "stage2", "prompt", "grid_interval", "normalize", "nonfinite", "tiles", "views"),
    *("voxel_size", "target_voxel_size", "propagation", "start_slice", "axes", "write_uncertainty", "force"),
    *("threshold", "false_rate", "sample", "exclude"),
    *("slice_stride", "side_slice_stride", "resegment_conditioning"),
    *("tile_batch_size", "encode_batch_size", "memory_budget_gb", "kernels"),
    *("postprocess", "workers", "trainer.precision", "trainer.accelerator", "trainer=auto", "trainer=cpu"),
)


@dataclass(frozen=True)
class Segmentation:
    """Logits and mask of one tomogram.

    Attributes
    ----------
    logits
        (Z, Y, X) float32; above `threshold` is membrane. An array; with `output_path` a lazy `Volume` on that file.
    mask
        (Z, Y, X) uint8, 0 or 1, post-processed if that was asked for. An array; with `output_path` computed slice by
        slice: `mask[z]`.
    voxel_size
        (z, y, x) in Å, None if unknown.
    threshold
        Logits strictly above are membrane.
    uncertainty
        (Z, Y, X) float32, 0 to 0.5: expected chance that a voxel's call, before post-processing, is wrong; as `logits`
        is. None without the setting `write_uncertainty=true`.
    """

    logits: "Slices"
    mask: "Slices"
    voxel_size: tuple[float, float, float] | None
    threshold: float
    uncertainty: "Slices | None" = None


class Model:
    """Both networks with their weights and settings, which segment volumes one after another; made by `load`.

    Parameters
    ----------
    segmenter
        On its device.
    autocast
        Type that the networks compute in where they may; None: float32.
    steps
        Post-processing of masks, by name.
    workers
        Threads of post-processing.
    """

    def __init__(
        self, segmenter: "Segmenter", autocast: "torch.dtype | None", steps: Mapping[str, Any], workers: int | None
    ) -> None:
        self._segmenter, self._autocast, self._steps, self._workers = segmenter, autocast, steps, workers

    def segment(
        self,
        tomogram: "ArrayLike | Volume | str | os.PathLike[str]",
        *,
        also: "Sequence[ArrayLike | Volume | str | os.PathLike[str]]" = (),
        voxel_size: float | tuple[float, float, float] | None = None,
        output_path: str | Path | None = None,
        overwrite: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Segmentation:
        """Segment one tomogram.

        Parameters
        ----------
        tomogram
            (Z, Y, X) array of real numbers, or what NumPy makes one of (a torch tensor on the CPU, a dask array, nested
            lists); or the path of a file or OME-Zarr, or the URL of one; or a `Volume`. Masked values of a NumPy masked
            array count as NaN.
        also
            Other reconstructions or half maps of it, of the same shape, whose logits are averaged with its own.
        voxel_size
            (z, y, x) in Å of an array, one number for all three, or what mrcfile gives; a file has its own.
        output_path
            Stream the logits into this file (OME-Zarr if it ends in `.zarr`, else MRC), so that memory does not grow
            with the volume. The uncertainty, if it was asked for, goes beside it: `_uncertainty` before the suffix.
        overwrite
            Replace `output_path` if it exists.
        progress
            Called with (part, slices done, slices in all).

        Raises
        ------
        etsam.errors.EtsamError
            Whatever is wrong with input or output, in one line.
        """
        from etsam.errors import OutputError
        from etsam.prediction.inputs import refuse_other_shape
        from etsam.volume import read_volume, volume_writer

        volume = self._segmenter.as_told(as_volume(tomogram, voxel_size))
        others = [as_volume(one) for one in _each(also)]
        for one in others:
            refuse_other_shape(one.shape, f"also: {one.path or 'an array'}", volume.shape, "the tomogram")
        if output_path is None:
            logits = np.empty(volume.shape, np.float32)
            unsure = np.empty_like(logits) if self._is_unsure else None
            threshold = self.fill(logits, volume, None, progress, unsure, others)
            mask = self._mask(logits, threshold)
            mask = np.stack([mask[z] for z in range(volume.shape[0])])
            return Segmentation(logits, mask, volume.voxel_size_angstrom, threshold, unsure)
        beside = Path(output_path).with_name(_with_ending(Path(output_path).name, "_uncertainty"))
        read = {os.path.realpath(one.path) for one in (volume, *others) if one.path is not None}
        for path in (output_path, beside):
            if os.path.realpath(path) in read:
                raise OutputError(f"{path} is the tomogram itself, or one of `also`; choose another output_path.")
        # opened first, so that hours of prediction are not for a file that may not be written
        with ExitStack() as stack:
            writers = [
                stack.enter_context(volume_writer(path, volume.shape, np.float32, volume, overwrite))
                for path in (output_path, beside)[: 1 + self._is_unsure]
            ]
            threshold = self.fill(
                writers[0],
                volume,
                Path(output_path).absolute().parent,
                progress,
                writers[1] if self._is_unsure else None,
                others,
            )
        written = read_volume(output_path, warn=False)
        unsure_written = read_volume(beside, warn=False) if self._is_unsure else None
        mask = self._mask(written, threshold)
        return Segmentation(written, mask, volume.voxel_size_angstrom, threshold, unsure_written)

    @property
    def _is_unsure(self) -> bool:
        return self._segmenter.two_stage.spread

    def fill(
        self,
        out: Any,
        volume: "Volume",
        scratch_folder: Path | None,
        progress: Any,
        unsure: Any = None,
        also: Sequence["Volume"] = (),
    ) -> float:
        """Put the logits of a volume into `out`, and the uncertainty into `unsure`; gives the threshold.

        Both take slice by slice: `out[z] = plane`.
        """
        import torch

        with torch.autocast(self._segmenter.device.type, self._autocast, enabled=self._autocast is not None):
            prediction = self._segmenter.segment(volume, also, scratch_folder=scratch_folder, progress=progress)
        for z in range(volume.shape[0]):
            out[z] = prediction.logits[z]
            if unsure is not None and prediction.uncertainty is not None:
                unsure[z] = prediction.uncertainty[z]
            if progress is not None:
                progress("writing", z + 1, volume.shape[0])
        return prediction.threshold

    def _mask(self, logits: "Slices", threshold: float) -> "Slices":
        from etsam.inference.two_stage import membrane_mask
        from etsam.postprocess.steps import apply_steps

        mask = membrane_mask(logits, threshold)
        return apply_steps(mask, self._steps, workers=self._workers) if self._steps else mask


def load(overrides: Sequence[str] = (), *, device: str | None = None) -> Model:
    """Networks, weights and settings, kept in memory: `model = etsam.load(); model.segment(volume)`.

    Parameters
    ----------
    overrides
        Settings as on the command line, such as `["weights=etsam_v1", "stage2.threshold=0"]`; those about files,
        folders and several devices are refused.
    device
        Such as `cuda:0`; default: a GPU if there is one (bfloat16 where it can), else the CPU (float32).

    Raises
    ------
    etsam.errors.EtsamError
        Whatever is wrong with weights or settings, in one line.
    """
    from hydra.utils import instantiate

    from etsam.app import check_values, compose_config, config_error
    from etsam.threads import worker_count
    from etsam.weights.store import ensure_weights, with_automatic_weights

    for override in overrides:
        _refuse_unused(override)
    with config_error():
        cfg = compose_config("predict", with_automatic_weights(overrides))
        check_values(cfg, "predict")
        target, autocast = _device(cfg, device), None
        if target.type != "cpu" or any(item.lstrip("+").startswith("trainer.precision=") for item in overrides):
            autocast = _autocast(cfg.trainer.precision)
        workers = worker_count(cfg.workers)
        ensure_weights(cfg.weights)
        cfg.segmenter.scratch_folder, cfg.segmenter.samples = None, False
        segmenter = instantiate(cfg.segmenter).to(target)
        steps = instantiate(cfg.postprocess, _convert_="all")
    return Model(segmenter, autocast, steps or {}, workers)


def segment(
    tomogram: "ArrayLike | Volume | str | os.PathLike[str]",
    *,
    also: "Sequence[ArrayLike | Volume | str | os.PathLike[str]]" = (),
    voxel_size: float | tuple[float, float, float] | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    output_path: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Segmentation:
    """Segment one tomogram; for several, `load` builds the networks once.

    Parameters
    ----------
    tomogram, also, voxel_size, output_path, overwrite, progress
        As of `Model.segment`.
    overrides, device
        As of `load`.

    Raises
    ------
    etsam.errors.EtsamError
        Whatever is wrong with input, output, weights or settings, in one line.
    """
    return load(overrides, device=device).segment(
        tomogram, also=also, voxel_size=voxel_size, output_path=output_path, overwrite=overwrite, progress=progress
    )


def as_volume(
    given: "ArrayLike | Volume | str | os.PathLike[str]", voxel_size: float | tuple[float, float, float] | None = None
) -> "Volume":
    """Volume of an array, of a file, or of what is one already.

    Parameters
    ----------
    given
        As `tomogram` of `Model.segment`.
    voxel_size
        (z, y, x) in Å, or one number; only beside an array.

    Raises
    ------
    InputError
        If it is none of these, cannot be read, or has a voxel size of its own beside the one given.
    """
    from etsam.errors import InputError
    from etsam.volume import Volume, read_volume

    if isinstance(given, list | tuple) and any(isinstance(one, str | os.PathLike) for one in given):
        raise InputError(
            "a list of files is no tomogram; segment them one by one (`also` is for other reconstructions of one)."
        )
    if not isinstance(given, str | os.PathLike | Volume):
        return Volume.from_array(given, voxel_size)
    if voxel_size is not None:
        raise InputError(
            "voxel_size is for arrays; a file has its own in its header. Leave it out, or load with "
            "overrides=['voxel_size=13.5'] where the header is wrong."
        )
    return copy.copy(given) if isinstance(given, Volume) else read_volume(given)  # its voxel size may be set


def _each(also: Any) -> Iterable[Any]:
    """Reconstructions one by one; a single one needs no list around it."""
    from etsam.volume import Volume

    path_or_volume = isinstance(also, str | bytes | os.PathLike | Volume)
    is_one = path_or_volume or hasattr(also, "__array__") or not isinstance(also, Iterable)
    return [also] if is_one else also


def _with_ending(name: str, ending: str) -> str:
    """File name with an ending before its suffix, `.mrc.gz` being one."""
    from etsam.volume.location import suffix_of

    suffix = suffix_of(name)
    stem = name[: len(name) - len(suffix)]
    return f"{stem}{ending}{suffix}"


def _refuse_unused(override: str) -> None:
    """Raise ConfigError for a setting of the command line that would be without effect here."""
    from etsam.errors import ConfigError

    name, _, value = override.lstrip("+~").partition("=")
    name = name.partition("@")[0]
    if {name, f"{name}={value}", name.partition(".")[0]} & set(_HONOURED):
        return
    if name.partition(".")[0] in _COMMAND_LINE:
        raise ConfigError(f"{override}: {name} is for the command line and has no effect in Python; leave it out.")


def _device(cfg: Any, device: str | None) -> "torch.device":
    """Device of the argument or of `trainer.accelerator`, which must not contradict each other."""
    import torch

    from etsam.errors import ConfigError

    wanted = {"gpu": "cuda", "auto": None}.get(cfg.trainer.accelerator, cfg.trainer.accelerator)
    found = torch.device(device or wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    if wanted is not None and found.type != wanted:
        raise ConfigError(f"device={device} and trainer.accelerator={cfg.trainer.accelerator} exclude each other.")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{found}: torch finds no GPU here; use device='cpu'.")
    return found


def _autocast(precision: Any) -> "torch.dtype | None":
    import torch

    from etsam.errors import ConfigError

    known = {"32-true": None, "32": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if str(precision) not in known:
        raise ConfigError(f"trainer.precision={precision} is not for Python; allowed: {', '.join(known)}.")
    return known[str(precision)]
