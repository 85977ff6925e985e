"""The JSON record beside each mask: what was run, on what, with which result; its presence says `complete`."""

import json
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from etsam._version import __version__
from etsam.errors import OutputError
from etsam.inference.false_marks import FALSE_RATE
from etsam.settings import RENAMED
from etsam.volume import atomic_path, locate
from etsam.volume.location import absolute
from etsam.weights.registry import StageWeights

FORMATS = ("mrc", "mrc.gz", "zarr")
"""Of the volumes that a prediction writes."""

_PACKAGES = ("torch", "sam2", "lightning", "numpy", "mrcfile")


@dataclass(frozen=True)
class OutputNames:
    """Files of one tomogram, named as the published tool names them, so that scripts keep working."""

    folder: Path
    stem: str
    infix: str = ""
    volume_suffix: str = ".mrc"

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.stem}_etsam_predicted{self.infix}_{ending}"

    @property
    def mask(self) -> Path:
        """Binary mask; in MRC mode 0."""
        return self._path(f"mask{self.volume_suffix}")

    @property
    def logits(self) -> Path:
        """Logits that the mask is cut from, float32: of stage 2, or the mean of both stages'."""
        return self._path(f"logits{self.volume_suffix}")

    @property
    def uncertainty(self) -> Path:
        """Chance that a voxel's call in `mask` is wrong, 0 to 0.5, float32."""
        return self._path(f"uncertainty{self.volume_suffix}")

    @property
    def post_processed_mask(self) -> Path:
        """Mask after post-processing, as `mask`."""
        return self._path(f"post_processed_mask{self.volume_suffix}")

    @property
    def instances(self) -> Path:
        """Connected membranes numbered by decreasing size, uint16."""
        return self._path(f"instances{self.volume_suffix}")

    @property
    def preview(self) -> Path:
        """Picture."""
        return self._path("preview.png")

    def view(self, suffix: str) -> Path:
        """File of another program's view on the mask, such as `.html`."""
        return self.folder / f"{self.stem}_etsam_predicted{self.infix}{suffix}"

    def every(self) -> list[Path]:
        """List all files that the program may write for a tomogram beside the record, in all formats."""
        formats = [replace(self, volume_suffix=f".{kind}") for kind in FORMATS]
        masks = [path for one in formats for path in (one.mask, one.post_processed_mask, one.instances)]
        others = [path for one in formats for path in (one.logits, one.uncertainty)]
        return [*masks, *others, self.preview, self.view(".html"), self.view(".cxc")]

    @property
    def claim(self) -> Path:
        """Hidden file that is there while a process is at work on the tomogram, and says of what; see `as_json`."""
        return self.folder / f".{self.stem}_etsam_predicted{self.infix}.lock"

    @property
    def record(self) -> Path:
        """JSON record, written last."""
        return self._path("record.json")


def write_record(path: Path, record: Mapping[str, Any], overwrite: bool = False) -> None:
    """Write a record as indented JSON, whole or not at all."""
    with atomic_path(path, overwrite) as part:
        part.write_text(as_json(record), encoding="utf-8")


def as_json(record: Mapping[str, Any]) -> str:
    """Text of a record, or of what is known of one while its outputs are being made: the start of it."""
    return json.dumps(record, indent=2, default=_plain) + "\n"


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a record; None if there is none.

    Raises
    ------
    OutputError
        If the file is no record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
            raise ValueError("no settings in it")
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise OutputError(f"{path} is no record of a run ({error}); remove it or set overwrite=true.") from error
    record["settings"] = {RENAMED.get(key, key): value for key, value in record["settings"].items()}
    return record


def version_of(package: str) -> str | None:
    """Version of an installed package; None if there is none of that name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Program and library versions, machine and time."""
    return {
        "etsam": __version__,
        "python": platform.python_version(),
        "packages": {name: version_of(name) or "unknown" for name in _PACKAGES},
        "platform": platform.platform(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def peak_memory_mb() -> dict[str, float]:
    """Largest resident memory of this process so far, and on the GPU if one was used, in MB."""
    peak = {"ram": round(_peak_resident_bytes() / 1e6, 1)}
    torch: Any = sys.modules.get("torch")  # who has not imported it has used no GPU
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return peak


def _peak_resident_bytes() -> int:
    try:  # Linux: the high-water mark of this very program; ru_maxrss would include the process that started it
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not belong in a record")


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Settings that decide a mask, plain values: for the record and for `resume`."""
    keys = ["net", "normalize", "nonfinite", "tiles", "postprocess", "resegment_conditioning", "views", "slice_stride"]
    keys += ["target_voxel_size"]
    settings = {key: plain_settings(cfg[key]) for key in keys}
    # not in records of version 0.1, of which `resume` shall keep what is as by default
    since = {"propagation": "forward", "start_slice": None, "axes": ["z"], "side_slice_stride": 1}
    chosen = {key: plain_settings(cfg[key]) for key in since}
    settings |= {key: value for key, value in chosen.items() if value != since[key]}
    if cfg.weights.get("mean_of_stages"):
        settings["mean_of_stages"] = True
    if cfg.voxel_size is not None:
        settings["voxel_size"] = cfg.voxel_size
    if cfg.get("write_uncertainty"):
        settings["calibration"] = plain_settings(cfg.weights.get("calibration"))
    if cfg.get("also"):
        settings["also"] = [absolute(locate(path)) for path in cfg.also]
    if len(cfg.axes) > 1:
        settings["side_views"] = plain_settings(cfg.weights.side_views)
    if cfg.target_voxel_size is not None and cfg.weights.get("finer_shift") is not None:
        settings["finer_shift"] = plain_settings(cfg.weights.finer_shift)
    if cfg.threshold is not None:
        settings |= {"threshold": cfg.threshold, "false_rate": FALSE_RATE if cfg.false_rate is None else cfg.false_rate}
    if cfg.sample != "all" or cfg.exclude:  # only then, so that runs of old can be resumed
        settings |= {"sample": cfg.sample, "exclude": plain_settings(cfg.exclude)}
    settings["precision"] = cfg.trainer.precision
    settings["weights"] = {}
    for stage in ("stage1", "stage2"):
        tracker = cfg[stage].tracker
        weights = StageWeights.resolve(tracker.checkpoint, tracker.seed)
        settings[stage] = {"prompt": plain_settings(cfg[stage].prompt), "threshold": cfg[stage].threshold}
        settings["weights"][stage] = {"name": weights.name, "sha256": weights.sha256()}
    return settings


def weights_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the weights whose logits a mask is cut from: of both stages where their mean is, else of stage 2.

    Parameters
    ----------
    settings
        Of a record; without weights in them, of the first version, nothing is named.
    """
    weights = settings.get("weights", {})
    stages = ("stage1", "stage2") if settings.get("mean_of_stages") else ("stage2",)
    return tuple(str(weights[stage]["name"]) for stage in stages if stage in weights)


def threshold_of(record: Mapping[str, Any]) -> float:
    """Threshold that a mask was cut at; earlier records have it in their settings only.

    Raises
    ------
    KeyError
        If the record does not say.
    """
    return float(record["threshold"] if "threshold" in record else record["settings"]["stage2"]["threshold"])


def plain_settings(value: Any) -> Any:
    """Plain value of a setting, for the record: nested dicts and lists of what JSON knows."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
