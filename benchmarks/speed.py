"""Time a stage beside SAM2's own video predictor: same weights, input and machine, in turns.

python benchmarks/speed.py --net sam2.1_hiera_b+ --shape 14,928,960     # random weights, a made volume
python benchmarks/speed.py --tomogram tomogram.mrc weights=etsam_v1     # both stages, real weights
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from speed_pairs import SpeedSettings, compare_speed, summary

from etsam.app import compose_config, config_error, configure_logging
from etsam.errors import EtsamError
from etsam.inference.fusion import fuse
from etsam.network.build import build_tracker
from etsam.normalize import normalize
from etsam.volume import read_volume
from etsam.weights.store import ensure_weights


def random_weights(net: Mapping[str, Any], path: Path, seed: int = 0) -> None:
    """Weights under which slices depend on each other, and logits lie on both sides of the threshold."""
    tracker = build_tracker(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tracker.network.named_parameters():
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                continue
            fan = parameter[0].numel() if parameter.ndim > 1 else 400
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
        score = getattr(tracker.network.sam_mask_decoder, "pred_obj_score_head", None)
        if score is not None:
            last = score.layers[-1] if hasattr(score, "layers") else score
            last.bias.fill_(50.0)  # an object everywhere
    safetensors.torch.save_model(tracker.network, str(path))


def made_volume(shape: tuple[int, int, int]) -> np.ndarray:
    """Rings that move from slice to slice, and noise, 0 to 1."""
    z, y, x = (np.arange(side, dtype=np.float32) for side in shape)
    rng = np.random.default_rng(0)
    rings = [np.sin(np.hypot(y[:, None] - 90 - 2 * depth, x - 100) / 4) for depth in z]
    return np.stack(
        [np.clip(0.5 + 0.25 * ring + 0.1 * rng.standard_normal(ring.shape), 0, 1) for ring in rings]
    ).astype(np.float32)


def parse_shape(text: str) -> tuple[int, int, int]:
    depth, height, width = (int(side) for side in text.split(","))
    return depth, height, width


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as of a prediction")
    parser.add_argument("--tomogram", help="time both stages on it, with the weights of the settings")
    parser.add_argument("--slices", type=int, default=16, help="of the tomogram; a memory bank is full after seven")
    parser.add_argument("--net", default="sam2.1_hiera_b+", help="of configs/net, with random weights")
    parser.add_argument("--shape", type=parse_shape, default=(14, 928, 960), metavar="Z,Y,X", help="of the made volume")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--encode-batch-size", type=int, help="slices that ours encodes together")
    parser.add_argument("--no-peer", action="store_true", help="time this program only")
    parser.add_argument("--no-parts", action="store_true", help="leave out the last pair, which times each part")
    parser.add_argument("--output-dir", type=Path, default=Path("results/speed"))
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    configure_logging()
    try:
        given = [f"input={args.tomogram}"] if args.tomogram else [f"net={args.net}", "input=x", "weights=random"]
        with config_error():
            cfg = compose_config("predict", [*given, *args.settings])
        with tempfile.TemporaryDirectory() as folder:
            (_time_stages if args.tomogram else _time_made_volume)(args, cfg, Path(folder))
    except EtsamError as error:
        sys.exit(f"error: {error}")


def _time_made_volume(args: argparse.Namespace, cfg: Any, folder: Path) -> None:
    net: Any = OmegaConf.to_container(cfg.net)
    weights = folder / "stage.safetensors"
    random_weights(net, weights)
    _compare(args, net, weights, made_volume(args.shape), args.output_dir)


def _time_stages(args: argparse.Namespace, cfg: Any, folder: Path) -> None:
    """Time each stage on its own input: the tomogram, and what stage 1 makes of it."""
    ensure_weights(cfg.weights)
    net: Any = OmegaConf.to_container(cfg.net, resolve=True)
    slices = normalize(read_volume(args.tomogram), instantiate(cfg.normalize))
    normalized = np.stack([np.asarray(slices[z], np.float32) for z in range(min(args.slices, slices.shape[0]))])
    image = normalized
    for stage, prompt in (("stage1", "grid_zero"), ("stage2", "zero")):
        checkpoint = cfg[stage].tracker.checkpoint
        if checkpoint is None:
            checkpoint = folder / f"{stage}.safetensors"
            random_weights(net, checkpoint, cfg[stage].tracker.seed)
        logits = _compare(args, net, checkpoint, image, args.output_dir / stage, prompt)
        fused = fuse(normalized, logits)
        image = np.stack([fused[z] for z in range(len(normalized))])


def _compare(
    args: argparse.Namespace,
    net: Mapping[str, Any],
    weights: str | Path,
    volume: np.ndarray,
    folder: Path,
    prompt: str = "grid_zero",
) -> np.ndarray:
    settings = SpeedSettings(
        net,
        str(weights),
        args.repeats,
        args.device,
        args.precision,
        args.threads,
        peer=not args.no_peer,
        parts=not args.no_parts,
        prompt=prompt,
        encode_batch_size=args.encode_batch_size,
    )
    report = compare_speed(settings, volume, folder, overwrite=args.overwrite)
    for line in summary(report):
        logging.getLogger("etsam.speed").info(line)
    assert report.logits is not None
    return report.logits


if __name__ == "__main__":
    main()
