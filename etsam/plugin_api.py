"""Python interface of the published tool, for the plugins of napari and ChimeraX that its authors wrote.

They start a Python of their user's choice (`ETSAM_PYTHON`) with a worker script that calls `etsam.segment` with the
published arguments, `etsam.ensure_checkpoints`, and `postprocess.postprocess`. `etsam-plugin-python` is such a Python:
that of this installation, in which the module `postprocess` of that name can be imported, too
(`etsam/plugin_modules/`).
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from etsam import api
from etsam.published_names import NORMALIZATIONS, PROMPTS

if TYPE_CHECKING:
    from etsam.volume import Volume

PublishedProgress = Callable[[float, str], None]
"""Called with (fraction done, message)."""

_PUBLISHED_DEFAULTS = {
    "normalize_method": "min_max_positive_values",
    "split_processing": False,
    "stage1_prompt": "grid_zero",
    "stage2_prompt": "zero",
}


@functools.wraps(api.segment)
def segment(tomogram: "ArrayLike | Volume | str | os.PathLike[str]", **options: Any) -> Any:
    """As `etsam.api.segment`; with an argument of the published tool, its interface: `segment_published`."""
    if options.keys() & _PUBLISHED_DEFAULTS.keys():
        return segment_published(tomogram, **options)
    return api.segment(tomogram, **options)


def segment_published(
    tomogram: "ArrayLike | Volume | str | os.PathLike[str]",
    *,
    normalize_method: str = "min_max_positive_values",
    split_processing: bool = False,
    stage1_prompt: str = "grid_zero",
    stage2_prompt: str = "zero",
    progress: PublishedProgress | None = None,
    output_path: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
) -> np.ndarray:
    """Logits (Z, Y, X) float32 that a mask is cut from (`prediction.record`), by the arguments of the published tool.

    Parameters
    ----------
    tomogram
        (Z, Y, X) array of real numbers, read slice by slice (a memory-mapped one stays on disk), or a file.
    normalize_method, stage1_prompt, stage2_prompt
        Words of `etsam.published_names`. `min_max_positive_values`, which the plugins always send, means what the
        weights were trained with.
    split_processing
        Four quadrants for themselves.
    progress
        Called with (fraction done, message).
    output_path
        Write the logits to this file in NumPy's format, slice by slice, and give them as an array that stays on disk.
    overrides, device
        As of `etsam.load`.

    Raises
    ------
    etsam.errors.EtsamError
        Whatever is wrong with input, output, weights or settings, in one line.
    """
    from etsam.errors import ConfigError
    from etsam.volume import atomic_path

    settings = list(overrides)
    for name, given, known, group in (
        ("normalize_method", normalize_method, NORMALIZATIONS, "normalize"),
        ("stage1_prompt", stage1_prompt, PROMPTS, "prompt@stage1.prompt"),
        ("stage2_prompt", stage2_prompt, PROMPTS, "prompt@stage2.prompt"),
    ):
        if given not in known:
            raise ConfigError(f"{name}={given!r} is unknown; allowed: {', '.join(known)}.")
        if given != _PUBLISHED_DEFAULTS[name]:
            settings.append(f"{group}={known[given]}")
    if split_processing:
        settings.append("tiles=split2x2")
    model = api.load(settings, device=device)
    volume = api.as_volume(tomogram)
    report = None if progress is None else _fractions(progress)
    if output_path is None:
        logits = np.empty(volume.shape, np.float32)
        model.fill(logits, volume, None, report)
        return logits
    target = Path(output_path)
    with atomic_path(target, overwrite=True) as part:
        out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=volume.shape)
        model.fill(out, volume, target.absolute().parent, report)
        out.flush()
        del out
    return np.load(target, mmap_mode="r")


def _fractions(progress: PublishedProgress) -> Callable[[str, int, int], None]:
    from etsam.prediction.forecast import fraction_done

    def report(part: str, done: int, total: int) -> None:
        progress(fraction_done(part, done, total), f"{part}: slice {done} of {total}")

    return report


def ensure_checkpoints() -> list[Path]:
    """Download the published weights, if they are not here, and say where they lie: stage 1, stage 2.

    Raises
    ------
    etsam.errors.EtsamError
        If they are not here and no server gives them.
    """
    from etsam.weights.store import fetch_weights

    return fetch_weights(["etsam_v1"])


def postprocess(mask: np.ndarray) -> np.ndarray:
    """Mask after the published post-processing: thin noise removed, then misconnections cut.

    Parameters
    ----------
    mask
        (Z, Y, X), 0 and 1 or 255.

    Returns
    -------
    np.ndarray
        (Z, Y, X) uint8, 0 and 1.
    """
    from etsam.postprocess.steps import RemoveThinNoise, SeverMisconnections, apply_steps

    cleaned = apply_steps(mask, [RemoveThinNoise(), SeverMisconnections()])
    return np.stack([cleaned[z] for z in range(mask.shape[0])])


def plugin_python() -> None:
    """Entry point of `etsam-plugin-python`: this installation's Python, which finds the module `postprocess`."""
    modules = str(Path(__file__).parent / "plugin_modules")
    path = os.pathsep.join([modules, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], os.environ | {"PYTHONPATH": path})
