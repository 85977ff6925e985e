"""Stage-1 logits of tomograms, computed once by the prediction code, along Z as in prediction, and cached.

Stage 2 trains on what stage 1 says. A file of the cache is named after everything that decides its content: tomogram,
weights, network, prompt, tiles, normalisation. Other weights make other files, so nothing stale is ever used; what is
there is not computed again, so an interrupted run goes on where it stopped.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from etsam.errors import ConfigError
from etsam.inference.propagate import PropagationSettings
from etsam.inference.tiles import Overlapping, Stitched, Tiling
from etsam.inference.two_stage import Stage, run_stage, store_for
from etsam.normalize import Normalization, normalize
from etsam.training.validation import Annotated
from etsam.volume import Slices, atomic_path, locate, read_volume, strip_suffix
from etsam.volume.location import display_name, state_of

log = logging.getLogger(__name__)


class _Half:
    """Low-resolution logits on disk, float16, handed out as float32; each access opens and closes the file."""

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
    normalization
        As in inference.
    identity
        Plain values that, with tomogram and tiling, decide the logits: weights' checksum, network, prompt, ...
    tile_voxels
        Side of the tiles that the network is made for.
    tile_step
        Of a network at voxel resolution (`SliceTracker.tile_step`).
    tiling
        How slices are cut.
    resegment_prompted, nonfinite
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
        resegment_prompted: bool = True,
        nonfinite: Literal["error", "mean"] = "error",
    ) -> None:
        self.folder = Path(folder)
        self._build = stage
        self._normalization = normalization
        self._tiling = tiling or Overlapping()
        self._tile_voxels, self._tile_step = tile_voxels, tile_step
        self._resegment, self._nonfinite = resegment_prompted, nonfinite
        described = {
            **identity,
            "normalization": repr(normalization),
            "tiling": repr(self._tiling),
            "resegment_prompted": resegment_prompted,
        }
        if nonfinite != "error":  # else there are no such voxels
            described["nonfinite"] = nonfinite
        self._identity = json.dumps(described, sort_keys=True, default=str)

    def path(self, sample: Annotated) -> Path:
        """File of a tomogram's logits."""
        place = locate(sample.tomogram)
        name, changed, size = state_of(place)
        key = f"{name}|{size}|{changed}|{self._identity}"
        return self.folder / f"{strip_suffix(place)}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"

    def prepare(self, samples: Iterable[Annotated], device: str | torch.device = "cpu") -> int:
        """Compute what is missing; returns how many tomograms that were.

        Raises
        ------
        InputError, CheckpointError
            If a tomogram or the stage-1 weights cannot be used.
        """
        missing = [sample for sample in samples if not self.path(sample).exists()]
        if not missing:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        stage = self._build()
        if (stage.tracker.tile_voxels, stage.tracker.tile_step) != (self._tile_voxels, self._tile_step):
            raise ConfigError(f"stage 1 has tiles of {stage.tracker.tile_voxels} voxels, not {self._tile_voxels}.")
        stage.tracker.to(device).eval()
        for done, sample in enumerate(missing, start=1):
            volume = read_volume(sample.tomogram, warn=False)
            tiles = self._tiling.plan(*volume.shape[1:], self._tile_voxels, self._tile_step)
            store = store_for(stage.tracker, tiles, volume.shape[0])
            normalized = normalize(volume, self._normalization, nonfinite=self._nonfinite)
            run_stage(stage, normalized, tiles, store=store, settings=PropagationSettings(self._resegment))
            with atomic_path(self.path(sample), overwrite=True) as part, part.open("wb") as file:
                np.save(file, np.asarray(store).astype(np.float16))
            log.info("stage-1 logits %d of %d: %s", done, len(missing), display_name(locate(sample.tomogram)))
        return len(missing)

    def __call__(self, sample: Annotated) -> Slices:
        """Logits (Z, Y, X) of a tomogram, read slice by slice.

        Raises
        ------
        ConfigError
            If they have not been computed.
        """
        path = self.path(sample)
        if not path.exists():
            raise ConfigError(f"no stage-1 logits for {sample.tomogram} in {self.folder}; they are made by `prepare`.")
        volume = read_volume(sample.tomogram, warn=False)
        tiles = self._tiling.plan(*volume.shape[1:], self._tile_voxels, self._tile_step)
        return Stitched(_Half(path), tiles, volume.shape, at_voxels=self._tile_step is not None)


def stage1_logits(
    folder: str | Path,
    net: Mapping[str, Any],
    checkpoint: str | None,
    prompt: Any,
    normalization: Any,
    tiling: Any,
    *,
    seed: int = 0,
    resegment_prompted: bool = True,
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
    resegment_prompted, nonfinite
        As in inference.

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
        resegment_prompted=resegment_prompted,
        nonfinite=nonfinite,
    )


def _stage1(net: Mapping[str, Any], checkpoint: str | None, seed: int, prompt: Any) -> Stage:
    from hydra.utils import instantiate

    from etsam.network.build import build_tracker

    return Stage(build_tracker(net, checkpoint, seed), instantiate(prompt))
