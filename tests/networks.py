"""Small random networks for tests."""

import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from etsam.network.build import build_tracker
from etsam.paths import resource_path


def tiny_net(name="tiny_test", **changes):
    """Config of a toy network; changes such as `num_maskmem=3` apply to its root."""
    with initialize_config_dir(str(resource_path("configs")), version_base="1.3"):
        net = compose(f"net/{name}").net
    with open_dict(net):
        net.update(changes)
    return net


def random_tracker(seed=0, name="tiny_test", **changes):
    """Tracker whose every parameter is random: the default initialisation (zeros, 1e-6) hides mistakes.

    The object score straddles zero and the logits the threshold, so that both branches are met.
    """
    tracker = build_tracker(tiny_net(name, **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tracker.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            scale = 1 / fan**0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 1:
                parameter += 0.5
    return tracker


def score_bias(tracker, value):
    """Shift the object score, so that slices are present (large value) or absent (small value)."""
    with torch.no_grad():
        tracker.network.sam_mask_decoder.pred_obj_score_head.layers[2].bias.fill_(value)
