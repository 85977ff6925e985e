"""The Python interface: `etsam.segment`."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from etsam.volume import Slices


@dataclass(frozen=True)
class Segmentation:
    """What `segment` returns.

    Attributes
    ----------
    logits
        (Z, Y, X) float32; above `threshold` is membrane. An array; with `output_path` a lazy `Volume` on that file.
    mask
        (Z, Y, X) uint8, 0 or 1. An array; with `output_path` computed slice by slice: `mask[z]`.
    voxel_size
        (z, y, x) in Å, None if unknown.
    threshold
        The one that made the mask.
    """

    logits: "Slices"
    mask: "Slices"
    voxel_size: tuple[float, float, float] | None
    threshold: float


def segment(
    tomogram: np.ndarray | str | Path,
    *,
    voxel_size: tuple[float, float, float] | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    output_path: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Segmentation:
    """Segment one tomogram.

    Parameters
    ----------
    tomogram
        (Z, Y, X) array of real numbers, or the path of a file or OME-Zarr, or the URL of one.
    voxel_size
        (z, y, x) in Å of an array; a file has its own.
    overrides
        Settings as on the command line, such as `["weights=etsam_v1", "stage2.threshold=0"]`.
    device
        Such as `cuda:0`; default: a GPU if there is one (bfloat16 where it can), else the CPU (float32).
    output_path
        Stream the logits into this file (OME-Zarr if it ends in `.zarr`, else MRC), so that memory does not grow with
        the volume.
    overwrite
        Replace `output_path` if it exists.
    progress
        Called with (part, slices done, slices in all).

    Raises
    ------
    etsam.errors.EtsamError
        Whatever is wrong with input, output, weights or settings, in one line.
    """
    import torch
    from hydra.utils import instantiate

    from etsam.app import check_values, compose_config, config_error
    from etsam.errors import InputError, OutputError
    from etsam.inference.two_stage import membrane_mask
    from etsam.volume import Volume, read_volume, volume_writer
    from etsam.weights.store import ensure_weights

    if isinstance(tomogram, np.ndarray):
        volume = Volume.from_array(tomogram, voxel_size)
    elif voxel_size is not None:
        raise InputError("voxel_size is for arrays; a file has its own in its header.")
    else:
        volume = read_volume(tomogram)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with config_error():
        cfg = compose_config("predict", overrides)
        check_values(cfg, "predict")
        ensure_weights(cfg.weights)
        cfg.segmenter.scratch_folder = None if output_path is None else str(Path(output_path).absolute().parent)
        segmenter = instantiate(cfg.segmenter).to(target)
    segmenter.progress = progress
    half = target.type == "cuda" and cfg.trainer.precision == "bf16-mixed"

    def fill(logits: Any, mask: Any) -> float:
        with torch.autocast(target.type, torch.bfloat16, enabled=half):
            prediction = segmenter.segment(volume)
        for z in range(volume.shape[0]):
            logits[z] = prediction.logits[z]
            if mask is not None:
                mask[z] = logits[z] > prediction.threshold
            if progress is not None:
                progress("writing", z + 1, volume.shape[0])
        return prediction.threshold

    if output_path is None:
        logits, mask = np.empty(volume.shape, np.float32), np.empty(volume.shape, np.uint8)
        threshold = fill(logits, mask)
        return Segmentation(logits, mask, volume.voxel_size_angstrom, threshold)
    if volume.path is not None and os.path.realpath(volume.path) == os.path.realpath(output_path):
        raise OutputError(f"{output_path} is the tomogram itself; choose another output_path.")
    # opened first, so that hours of prediction are not for a file that may not be written
    with volume_writer(output_path, volume.shape, np.float32, volume, overwrite) as writer:
        threshold = fill(writer, None)
    written = read_volume(output_path, warn=False)
    return Segmentation(written, membrane_mask(written, threshold), volume.voxel_size_angstrom, threshold)
