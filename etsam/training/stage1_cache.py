"""Stage-1 logits of tomograms, computed once by the prediction code, along Z and in the precision of prediction.

Stage 2 trains on what stage 1 says. A file of the cache is named after everything that decides its content: tomogram,
weights, network, prompt, tiles, normalisation, precision. Other weights make other files, so nothing stale is ever
used; what is there is not computed again, so an interrupted run goes on where it stopped.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from etsam.errors import ConfigError
from etsam.inference.propagate import PropagationSettings
from etsam.inference.tiles import Overlapping, Stitched, Tiling
from etsam.inference.two_stage import DEFAULT_THRESHOLD, Stage, Stage2Input, run_pass, stage2_input, store_for
from etsam.normalize import Normalization
from etsam.training.validation import Annotated
from etsam.volume import Slices, atomic_path, locate, strip_suffix
from etsam.volume.location import display_name, state_of

log = logging.getLogger(__name__)

STORED_DTYPE = np.float16  # rounds logits of up to 10 by at most 0.004, far less than bfloat16 does on the way to them
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class _Stored:
    """Low-resolution logits on disk, handed out as float32; each access opens and closes the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shape = tuple(np.load(path, mmap_mode="r").shape)

    def __getitem__(self, z: int, /) -> np.ndarray:
        return np.array(np.load(self._path, mmap_mode="r")[z], dtype=np.float32)


class Stage1Logits:
    """Cache of stage-1 logits.

    Parameters
    ----------
    folder
        Of the cache; S/4 x S/4 (or Y x X) float16 a slice and tile.
    stage
        Builds stage 1 when something has to be computed; not called otherwise.
    normalization, nonfinite
        That of the tomograms which `prepare` and calls are given, as in inference.
    identity
        Plain values that, with tomogram and tiling, decide the logits: weights' checksum, network, prompt, ...
    tile_voxels
        Side of the tiles that the network is made for.
    tile_step
        Of a network at voxel resolution (`SliceTracker.tile_step`).
    tiling
        How slices are cut.
    threshold
        Of stage 1, for the prompt `stage1_mask` of stage 2.
    precision
        As of Lightning's Trainer: stage 1 computes in it, as in prediction.
    resegment_conditioning
        As in inference.
    """

    def __init__(
        self,
        folder: str | Path,
        stage: Callable[[], Stage],
        normalization: Normalization,
        identity: Mapping[str, Any],
        tile_voxels: int,
        tiling: Tiling | None = None,
        *,
        tile_step: int | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        precision: str = "32-true",
        resegment_conditioning: bool = True,
        nonfinite: Literal["error", "mean"] = "error",
    ) -> None:
        self.folder = Path(folder)
        self._build = stage
        self._tiling = tiling or Overlapping()
        self._tile_voxels, self._tile_step = tile_voxels, tile_step
        self._resegment = resegment_conditioning
        self._threshold, self._precision = threshold, str(precision)
        described = {
            **identity,
            "normalization": repr(normalization),
            "tiling": repr(self._tiling),
            "resegment_conditioning": resegment_conditioning,
        }
        if nonfinite != "error":  # else there are no such voxels
            described["nonfinite"] = nonfinite
        if self._precision in _AUTOCAST:
            described["precision"] = self._precision
        self._identity = json.dumps(described, sort_keys=True, default=str)

    def path(self, sample: Annotated) -> Path:
        """File of a tomogram's logits."""
        place = locate(sample.tomogram)
        name, changed, size = state_of(place)
        key = f"{name}|{size}|{changed}|{self._identity}"
        return self.folder / f"{strip_suffix(place)}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"

    def prepare(self, tomograms: Iterable[tuple[Annotated, Slices]], device: str | torch.device = "cpu") -> int:
        """Compute what is missing.

        Parameters
        ----------
        tomograms
            Each with its normalised slices, (Z, Y, X) float32.
        device
            That computes.

        Returns
        -------
        int
            Number of tomograms that were computed.

        Raises
        ------
        InputError, CheckpointError
            If a tomogram or the stage-1 weights cannot be used.
        """
        missing = [one for one in tomograms if not self.path(one[0]).exists()]
        if not missing:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        stage = self._build()
        if (stage.tracker.tile_voxels, stage.tracker.tile_step) != (self._tile_voxels, self._tile_step):
            raise ConfigError(f"stage 1 has tiles of {stage.tracker.tile_voxels} voxels, not {self._tile_voxels}.")
        stage.tracker.to(device).eval()
        computed = 0
        for done, (sample, normalized) in enumerate(missing, start=1):
            if self.path(sample).exists():  # another process that fills this folder was faster
                continue
            depth, height, width = normalized.shape
            tiles = self._tiling.plan(height, width, self._tile_voxels, self._tile_step)
            store = store_for(stage.tracker.logit_format, tiles, depth)
            with self._autocast(stage.tracker.mean.device.type):
                run_pass(stage, normalized, tiles, store=store, settings=PropagationSettings(self._resegment))
            with atomic_path(self.path(sample), overwrite=True) as part, part.open("wb") as file:
                np.save(file, np.asarray(store).astype(STORED_DTYPE))
            computed += 1
            log.info("stage-1 logits %d of %d: %s", done, len(missing), display_name(locate(sample.tomogram)))
        return computed

    def _autocast(self, device: str) -> AbstractContextManager[Any]:
        lower = _AUTOCAST.get(self._precision)
        return nullcontext() if lower is None else torch.autocast(device, lower)

    def __call__(self, sample: Annotated, normalized: Slices) -> Stage2Input:
        """Input of stage 2 for a tomogram, read slice by slice.

        Parameters
        ----------
        sample
            The tomogram.
        normalized
            Its slices, normalised, (Z, Y, X) float32.

        Raises
        ------
        ConfigError
            If its logits have not been computed.
        """
        path = self.path(sample)
        if not path.exists():
            raise ConfigError(f"no stage-1 logits for {sample.tomogram} in {self.folder}; they are made by `prepare`.")
        depth, height, width = normalized.shape
        tiles = self._tiling.plan(height, width, self._tile_voxels, self._tile_step)
        logits = Stitched(_Stored(path), tiles, (depth, height, width), at_voxels=self._tile_step is not None)
        return stage2_input(normalized, logits, tiles, self._tiling, self._threshold)


def stage1_logits(
    folder: str | Path,
    net: Mapping[str, Any],
    checkpoint: str | None,
    prompt: Any,
    normalization: Any,
    tiling: Any,
    *,
    seed: int = 0,
    threshold: float = DEFAULT_THRESHOLD,
    precision: str = "32-true",
    resegment_conditioning: bool = True,
    nonfinite: Literal["error", "mean"] = "error",
) -> Stage1Logits:
    """`Stage1Logits` from configs; the network is built only if something has to be computed.

    Parameters
    ----------
    folder
        Of the cache.
    net, checkpoint, seed
        As for `build_tracker`.
    prompt, normalization, tiling
        Configs of the groups of these names.
    threshold, precision, resegment_conditioning, nonfinite
        As for `Stage1Logits`.

    Raises
    ------
    CheckpointError
        If there is no such checkpoint.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from etsam.network.build import tile_voxels
    from etsam.weights.registry import StageWeights

    def plain(config: Any) -> Any:  # the same settings give the same name, whichever way they came
        return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config

    weights = StageWeights.resolve(checkpoint, seed)
    return Stage1Logits(
        folder,
        partial(_stage1, net, checkpoint, seed, prompt),  # no closure: workers that are not forked pickle it
        instantiate(normalization),
        {"weights": weights.sha256() or weights.name, "net": plain(net), "prompt": plain(prompt)},
        tile_voxels(net),
        instantiate(tiling),
        tile_step=net.get("tile_step"),
        threshold=threshold,
        precision=precision,
        resegment_conditioning=resegment_conditioning,
        nonfinite=nonfinite,
    )


def _stage1(net: Mapping[str, Any], checkpoint: str | None, seed: int, prompt: Any) -> Stage:
    from hydra.utils import instantiate

    from etsam.network.build import build_tracker

    return Stage(build_tracker(net, checkpoint, seed), instantiate(prompt))
