"""The place that imports `sam2`: `etsam.network.voxel_sam2`, which extends it, calls `import_sam2` first.

`import sam2` initialises Hydra for the whole process, after which `@hydra.main` and `compose` refuse to run with
another config folder. The import is therefore guarded: Hydra is left as it was found (tests/test_import_side_effects).
The network configs are ours (`configs/net`), because sam2's own cannot be found from inside another Hydra program.
"""

import logging
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from etsam.errors import ConfigError
from etsam.network.checkpoint import load_weights
from etsam.network.fast.window_order import WindowOrder
from etsam.network.images import IMAGENET_MEAN, IMAGENET_STD, RGB
from etsam.network.tracker import LogitFormat, SliceTracker
from etsam.weights.registry import StageWeights

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

log = logging.getLogger(__name__)

_SIDE_MULTIPLE = 32  # the coarsest level of the image encoder has stride 32
_MOST_INPUT_SLICES = 31  # beyond it, what a slice shows is not what lies there
_OURS = ("input_slices", "tile_voxels", "memory_slices")  # of the group `net`, for `SliceTracker` and not for SAM2


def import_sam2() -> None:
    """Import sam2 and leave Hydra initialised only if it was so before."""
    initialised_before = GlobalHydra.instance().is_initialized()
    import sam2  # noqa: F401

    if not initialised_before:
        GlobalHydra.instance().clear()


def build_network(net: Mapping[str, Any]) -> "SAM2Base":
    """Construct a SAM2 network with random weights.

    Parameters
    ----------
    net
        A config of the group `net`: the tree of `_target_`s of `sam2.modeling`.

    Raises
    ------
    ConfigError
        If a constructor refuses its arguments, or the image side is no multiple of 32.
    """
    import_sam2()
    config: Any = OmegaConf.create(OmegaConf.to_container(net) if isinstance(net, DictConfig) else dict(net))
    OmegaConf.resolve(config)  # a trunk's input slices may be the network's
    for ours in _OURS:
        config.pop(ours, None)
    side = config.get("image_size")
    if not isinstance(side, int) or side <= 0 or side % _SIDE_MULTIPLE:
        raise ConfigError(f"net.image_size={side}: the image side has to be a positive multiple of {_SIDE_MULTIPLE}.")
    try:
        network = instantiate(config, _recursive_=True)
    except (HydraException, TypeError, ValueError, AssertionError, AttributeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"the network of the config group `net` cannot be built: {reason[-1]}") from error
    if net.get("input_slices", 1) > RGB and type(network.image_encoder.trunk) is known_layers().trunk:
        _widen(network, net["input_slices"])
    return network


def _widen(network: Any, channels: int) -> None:
    """Give the first convolution of SAM2's image encoder, made for RGB images, so many channels."""
    embed = network.image_encoder.trunk.patch_embed
    old = embed.proj
    embed.proj = torch.nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding)


def build_video_predictor(net: Mapping[str, Any], frames: Callable[[], tuple[Tensor, int, int]]) -> Any:
    """SAM2's own video predictor with random weights, to compare with; it reads its video from `frames`.

    Parameters
    ----------
    net
        A config of the group `net`.
    frames
        Gives (T, 3, S, S) float32 images and the height and width of the logits asked for.
    """
    import_sam2()
    import sam2.sam2_video_predictor as module

    module.load_video_frames = lambda **_: frames()
    module.tqdm = lambda items, **_: items
    return build_network({**net, "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor"}).eval()


class KnownLayers(NamedTuple):
    """Classes of SAM2 that this project knows how to speed up."""

    network: Any
    trunk: Any
    neck: Any
    mlp: Any
    rotary_attention: Any
    positions: Any


@cache
def known_layers() -> KnownLayers:
    """Import the classes."""
    import_sam2()
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention
    from sam2.modeling.sam2_base import SAM2Base
    from sam2.modeling.sam2_utils import MLP

    return KnownLayers(SAM2Base, Hiera, FpnNeck, MLP, RoPEAttention, PositionEmbeddingSine)


def build_tracker(
    net: Mapping[str, Any],
    checkpoint: str | None = None,
    seed: int = 0,
    *,
    widen: bool = False,
    kernels: Literal["fast", "reference"] = "fast",
) -> SliceTracker:
    """A stage's network with its weights, ready to track slices.

    Parameters
    ----------
    net
        A config of the group `net`; its `input_slices` (1 if it says nothing), `tile_voxels` (the image side) and
        `memory_slices` (all) are for the tracker, the rest for SAM2.
    checkpoint
        Weights file, as `StageWeights.resolve` finds it; None: random weights.
    seed
        Of the random weights.
    widen
        For the start of training: take weights of fewer input slices, too (what they saw lies in the middle, and the
        slices farther out count for nothing until training finds a use for them), and those of a trunk alone. Networks
        at voxel resolution take weights of fewer slices in prediction, too: what they give is the same.
    kernels
        `fast`; or `reference` for SAM2's own code, as slow as it is, where a replacement is suspected.

    Raises
    ------
    ConfigError, CheckpointError
        As `build_network`, `StageWeights.resolve` and `load_weights`; or if `kernels` is another.
    """
    if kernels not in ("fast", "reference"):
        raise ConfigError(f"kernels={kernels} is unknown; allowed: fast, reference.")
    weights = StageWeights.resolve(checkpoint, seed)
    seen = input_slices(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(net)
    if weights.path is not None:
        load_weights(network, weights.path, adapt=partial(_adapted, network, seen, widen))
    trunk: Any = network.image_encoder.trunk
    if kernels == "fast" and type(trunk) is known_layers().trunk:
        trunk.forward = WindowOrder(trunk)
    return SliceTracker(network, seen, tile_voxels(net), memory_slices(net, network), kernels).eval()


def _adapted(network: Any, channels: int, widen: bool, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a file that fit `network`: those of a nano that saw fewer slices, and what training can start from."""
    trunk = network.image_encoder.trunk
    if widen and set(state) == set(trunk.state_dict()):
        log.info("these are weights of a trunk alone; the rest of the network starts at random")
        state = {**network.state_dict(), **{f"{_TRUNK}{name}": value for name, value in state.items()}}
    if hasattr(trunk, "adapted"):
        inner = {name.removeprefix(_TRUNK): value for name, value in state.items() if name.startswith(_TRUNK)}
        return {**state, **{f"{_TRUNK}{name}": value for name, value in trunk.adapted(inner).items()}}
    return widen_input(state, channels) if widen else state


def input_slices(net: Mapping[str, Any]) -> int:
    """Number of slices that the network of a config sees at a time; `ConfigError` if that is no odd number up to 31."""
    seen = net.get("input_slices", 1)
    if not isinstance(seen, int) or seen % 2 == 0 or not 0 < seen <= _MOST_INPUT_SLICES:
        raise ConfigError(
            f"net.input_slices={seen} is not allowed: 1, or with those before and after 3, 5, ... {_MOST_INPUT_SLICES}."
        )
    return seen


def tile_voxels(net: Mapping[str, Any]) -> int:
    """Side of a tile that the network of a config is made for, voxels: its image side, unless the config says less."""
    return int(net.get("tile_voxels") or net["image_size"])


def logit_format(net: Mapping[str, Any]) -> LogitFormat:
    """Size and precision of the logits that the network of a config gives."""
    return LogitFormat(int(net["image_size"]), net.get("tile_step"))


def memory_slices(net: Mapping[str, Any], network: "SAM2Base") -> int:
    """Number of slices attended to besides conditioning ones; `ConfigError` if the network was not made for so many."""
    most = int(network.num_maskmem) - 1
    asked = net.get("memory_slices")
    if asked is None:
        return most
    if type(asked) is not int or not 0 <= asked <= most:
        raise ConfigError(
            f"net.memory_slices={asked} is not allowed: null for all, or a whole number from 0 to {most}."
        )
    return asked


def random_click(truth: Tensor, prediction: Tensor | None) -> tuple[Tensor, Tensor]:
    """SAM2's own choice of a click: any pixel of the error, by torch's global random state.

    Parameters
    ----------
    truth, prediction
        (B, 1, H, W) bool; None: an empty prediction, hence a click on the truth.

    Returns
    -------
    Tensor, Tensor
        (B, 1, 2) float32 points (x, y) in pixels; (B, 1) int32 labels: 1 missed, 0 wrongly marked. Without any error it
        is a background pixel.
    """
    import_sam2()
    from sam2.modeling.sam2_utils import get_next_point

    return get_next_point(gt_masks=truth, pred_masks=prediction, method="uniform")


def random_box(truth: Tensor) -> tuple[Tensor, Tensor]:
    """SAM2's own box prompt: corners of the box around the truth, jittered by a tenth, by torch's global random state.

    Parameters
    ----------
    truth
        (B, 1, H, W) bool, not empty.

    Returns
    -------
    Tensor, Tensor
        (B, 2, 2) float32 corners (x, y) in pixels; (B, 2) int32 labels 2 and 3.
    """
    import_sam2()
    from sam2.modeling.sam2_utils import sample_box_points

    return sample_box_points(truth)


_TRUNK = "image_encoder.trunk."
_WEIGHT = f"{_TRUNK}patch_embed.proj.weight"
_BIAS = f"{_TRUNK}patch_embed.proj.bias"


def widen_input(state: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Weights whose first convolution takes `channels` slices and gives what it gave of those in the middle.

    Parameters
    ----------
    state
        Weights of SAM2 by name. A first convolution of three channels is taken as one that sees a grey slice three
        times, each time normalised as another colour, as SAM2's own weights and ETSAM's do; the result is the same
        but for the outermost pixels, where the image is continued by the mean colour.
    channels
        Input slices, odd.

    Returns
    -------
    dict
        `state` itself if it has as many channels already, or more; or if there is nothing to widen, since up to three
        slices are seen through three channels.
    """
    weight = state.get(_WEIGHT)
    if weight is None or channels <= RGB or weight.shape[1] >= channels:
        return state
    bias = state[_BIAS]
    if weight.shape[1] == RGB:
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        scaled = weight.float() / std.view(1, -1, 1, 1)
        bias = bias.float() + (scaled * (mean.mean() - mean).view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
        weight = scaled.sum(dim=1, keepdim=True) * std.mean()
    wide = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    before = (channels - weight.shape[1]) // 2
    wide[:, before : before + weight.shape[1]] = weight
    return {**state, _WEIGHT: wide, _BIAS: bias}
