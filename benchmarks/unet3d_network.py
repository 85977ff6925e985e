"""The U-Net: MONAI's BasicUNet, its weights' file, and prediction of whole tomograms by windows."""

import argparse
import json
import logging
import math
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from hydra.utils import instantiate
from torch import nn

from etsam.app import compose_config
from etsam.errors import CheckpointError, ConfigError, InputError, OutputError
from etsam.network.checkpoint import load_weights, read_state_dict
from etsam.normalize import normalize
from etsam.prediction.inputs import Tomograms
from etsam.prediction.record import OutputNames
from etsam.volume import atomic_path, read_volume, strip_suffix, volume_writer
from etsam.volume.atomic import refuse_existing

log = logging.getLogger("etsam.unet3d")

RECIPE = ["experiment=nano_stage1"]
"""Settings of `train.py` whose normalisation, augmentation and share of crops around membrane are used."""

_METADATA = "unet3d"  # entry of the weights' file that says which network they are of


def build(features: tuple[int, ...]) -> nn.Module:
    """Make MONAI's BasicUNet (two convolutions a level, instance norm, leaky ReLU) with one logit a voxel.

    Raises
    ------
    ConfigError
        If MONAI is not installed.
    """
    try:
        from monai.networks.nets import BasicUNet
    except ImportError as error:
        raise ConfigError(f"the U-Net needs the package monai ({error}); pip install 'monai>=1.3'.") from error
    return BasicUNet(spatial_dims=3, in_channels=1, out_channels=1, features=features)


def save(net: nn.Module, path: Path, features: tuple[int, ...], crop: tuple[int, ...], overwrite: bool) -> None:
    """Write weights with what `load` has to know; raises `OutputError` if they cannot be written."""
    described = json.dumps({"features": features, "crop": crop})
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    with atomic_path(path, overwrite) as part:
        part.write_bytes(safetensors.torch.save(state, metadata={"format": "pt", _METADATA: described}))


def make_folder(folder: Path) -> None:
    """Make an output folder; raises `OutputError` if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made ({error.strerror}); choose another.") from error


def predict(args: argparse.Namespace) -> None:
    """Write a mask, and on request logits, of each tomogram.

    Raises
    ------
    EtsamError
        If weights, a tomogram or a setting cannot be used, or an output exists.
    """
    if not (0 < args.threshold < 1 and 0 <= args.overlap < 1 and args.threads >= 1):
        raise ConfigError(
            f"--threshold {args.threshold:g} (between 0 and 1), --overlap {args.overlap:g} (0 to below 1) or --threads "
            f"{args.threads} (at least 1) is off."
        )
    torch.set_num_threads(args.threads)
    tomograms = Tomograms(args.files, args.output_dir)
    tomograms.check()
    net, crop = load(args.weights)
    make_folder(args.output_dir)
    names = {path: OutputNames(args.output_dir, strip_suffix(path)) for path in tomograms.paths}
    for name in names.values():
        for file in [name.mask] + [name.logits] * args.store_logits:
            refuse_existing(file, args.overwrite)
    normalization = instantiate(compose_config("train", RECIPE).normalize)
    limit = math.log(args.threshold / (1 - args.threshold))
    for path, name in names.items():
        started, volume = time.monotonic(), read_volume(path)
        try:
            slices = normalize(volume, normalization)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        logits = segment(net, np.stack([slices[z] for z in range(len(volume))]), crop, args.overlap)
        outputs: dict[Path, tuple[type, np.ndarray]] = {name.mask: (bool, logits > limit)}
        if args.store_logits:
            outputs[name.logits] = (np.float32, logits)
        with ExitStack() as stack:  # all get their names at the end, or none
            for file, (dtype, values) in outputs.items():
                writer = stack.enter_context(volume_writer(file, volume.shape, dtype, volume, args.overwrite))
                for z, plane in enumerate(values):
                    writer[z] = plane
        log.info("%s: %.1f s -> %s", path, time.monotonic() - started, name.mask)


def load(weights: Path) -> tuple[nn.Module, tuple[int, int, int]]:
    """Network of a weights' file, and the size (Z, Y, X) of the crops that it was trained on.

    Raises
    ------
    CheckpointError
        If the file cannot be read or was not written by `train`.
    """
    read_state_dict(weights)  # says what is wrong with a file that is no checkpoint
    found = None
    if weights.suffix == ".safetensors":
        with safetensors.safe_open(weights, "pt") as file:
            found = (file.metadata() or {}).get(_METADATA)
    if found is None:
        raise CheckpointError(f"{weights} holds no U-Net of this program; give the unet.safetensors that train wrote.")
    described = json.loads(found)
    net = build(tuple(described["features"]))
    load_weights(net, weights)
    z, y, x = described["crop"]
    return net.eval(), (z, y, x)


@torch.inference_mode()
def segment(net: nn.Module, image: np.ndarray, crop: tuple[int, int, int], overlap: float) -> np.ndarray:
    """Logits of a volume by windows of the size of `crop`, blended by Gaussian weights.

    Parameters
    ----------
    image
        Network input (Z, Y, X) float32; where it is smaller than a window, it is continued by reflection.
    overlap
        Of neighbouring windows, as share of their side.

    Returns
    -------
    numpy.ndarray
        (Z, Y, X) float32.
    """
    from monai.inferers import sliding_window_inference

    missing = [max(0, side - have) for side, have in zip(crop, image.shape, strict=True)]
    before = [count // 2 for count in missing]
    padded = np.pad(image, [(first, count - first) for first, count in zip(before, missing, strict=True)], "reflect")
    windows = torch.from_numpy(padded)[None, None]
    logits = sliding_window_inference(windows, crop, 1, net, overlap=overlap, mode="gaussian")
    inside = tuple(slice(first, first + side) for first, side in zip(before, image.shape, strict=True))
    assert isinstance(logits, torch.Tensor)  # as the network gives one
    return logits[0, 0].numpy()[inside]
