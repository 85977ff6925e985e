"""What of a config decides a mask: kept in records, compared by `resume`."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from etsam.weights import StageWeights


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """What decides a mask, plain values: for the record and for `resume`."""
    keys = ("net", "normalize", "nonfinite", "tiles", "postprocess", "resegment_prompted", "views", "slice_stride")
    settings = {key: _plain(cfg[key]) for key in keys}
    settings["precision"] = cfg.trainer.precision
    settings["weights"] = {}
    for stage in ("stage1", "stage2"):
        tracker = cfg[stage].tracker
        weights = StageWeights.resolve(tracker.checkpoint, tracker.seed)
        settings[stage] = {"prompt": _plain(cfg[stage].prompt), "threshold": cfg[stage].threshold}
        settings["weights"][stage] = {"name": weights.name, "sha256": weights.sha256()}
    return settings


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
