"""SAM2's losses of a clip: focal, dice, predicted IoU, object score; summed over slices and steps, float32.

Of the candidate masks of a step only the best one (least weighted focal + dice) is trained; mask, dice and IoU only
where the slice has an object, unless slices without one are to be learnt by their masks (networks without object
score). Ignored voxels are as if they were not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from etsam.errors import ConfigError
from etsam.training.clip import SliceOutput


@dataclass(frozen=True)
class Losses:
    """Scalars; `total` is the weighted sum of the four parts, which are not weighted themselves."""

    mask: Tensor
    dice: Tensor
    iou: Tensor
    object: Tensor
    total: Tensor


class MaskLosses(nn.Module):
    """The loss of one batch of clips.

    Parameters
    ----------
    mask, dice, iou, object
        Weights of the focal loss, the dice loss, the error of the predicted IoUs, the object score's cross entropy.
        Defaults here and below: SAM2's `sam2.1_hiera_b+_MOSE_finetune.yaml`.
    alpha, gamma
        Of the focal loss; `gamma` is 0 or at least 1, because its gradient is infinite in between.
    supervise_all_iou
        Whether the predicted IoU of every candidate is trained, or of the best one only.
    iou_l1
        Absolute error of the predicted IoU; else squared.
    train_empty
        Train the masks of slices without object, too. SAM2 leaves it to the object score to say that there is none.

    Raises
    ------
    ConfigError
        If a weight is negative, `alpha` no share, or `gamma` between 0 and 1.
    """

    def __init__(
        self,
        mask: float = 20.0,
        dice: float = 1.0,
        iou: float = 1.0,
        object: float = 1.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        supervise_all_iou: bool = True,
        iou_l1: bool = True,
        train_empty: bool = False,
    ) -> None:
        super().__init__()
        self.weights = {"mask": mask, "dice": dice, "iou": iou, "object": object}
        for name, weight in self.weights.items():
            if weight < 0:
                raise ConfigError(f"loss.{name}={weight}: the weight of a loss is at least 0.")
        if not 0 <= alpha <= 1:
            raise ConfigError(f"loss.alpha={alpha}: the share of the membrane in the focal loss lies in 0..1.")
        if gamma < 0 or 0 < gamma < 1:
            raise ConfigError(f"loss.gamma={gamma}: the focal exponent is 0 or at least 1.")
        self.alpha, self.gamma = alpha, gamma
        self.supervise_all_iou, self.iou_l1, self.train_empty = supervise_all_iou, iou_l1, train_empty

    def forward(self, outputs: Sequence[SliceOutput], masks: Tensor, ignore: Tensor | None = None) -> Losses:
        """Sum over slices and steps, divided by the number of clips.

        With several processes it is divided by the mean number of clips per process, as DDP then averages gradients.

        Parameters
        ----------
        outputs
            Of T slices; those that are not `supervised` are left out.
        masks
            (T, B, S, S) bool, the truth.
        ignore
            (T, B, S, S) bool, True where a voxel is not annotated. The annotated part decides whether a slice has an
            object; a slice without any annotated voxel has no loss at all.
        """
        clips = _mean_over_processes(masks.shape[1], masks.device)
        sums = dict.fromkeys(self.weights, torch.zeros((), device=masks.device))
        with torch.autocast(masks.device.type, enabled=False):
            for z, output in enumerate(outputs):
                if not output.supervised:
                    continue
                valid = torch.ones_like(masks[z]) if ignore is None else ~ignore[z]
                for step in zip(output.candidates, output.ious, output.object_scores, strict=True):
                    for name, value in self._step(*step, truth=masks[z] & valid, valid=valid).items():
                        sums[name] = sums[name] + value.sum() / clips
            total = torch.stack([weight * sums[name] for name, weight in self.weights.items()]).sum()
        return Losses(**sums, total=total)

    def _step(
        self, candidates: Tensor, ious: Tensor, object_score: Tensor, *, truth: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        """Each part for each clip, (B,); candidates (B, K, S, S), truth and valid (B, S, S) bool."""
        truth, valid = truth[:, None].flatten(2), valid[:, None].flatten(2)  # (B, 1, S*S)
        logits = candidates.float().flatten(2)  # (B, K, S*S)
        focal = self._focal(logits, truth, valid)  # (B, K)
        dice = _dice(logits, truth, valid)
        iou = self._iou_error(logits, truth, valid, ious.float())
        best = (self.weights["mask"] * focal + self.weights["dice"] * dice).argmin(dim=1, keepdim=True)  # (B, 1)
        present = truth.any(dim=2)[:, 0].float()  # (B,)
        annotated = valid.any(dim=2)[:, 0].float()
        score = object_score.float()[:, 0]
        trained = annotated if self.train_empty else present
        return {
            "mask": focal.gather(1, best)[:, 0] * trained,
            "dice": dice.gather(1, best)[:, 0] * trained,
            "iou": (iou.mean(dim=1) if self.supervise_all_iou else iou.gather(1, best)[:, 0]) * trained,
            "object": F.binary_cross_entropy_with_logits(score, present, reduction="none") * annotated,
        }

    def _focal(self, logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        sign = torch.where(truth, 1.0, -1.0)
        wrong = torch.sigmoid(-sign * logits)  # probability given to the wrong class
        share = torch.where(truth, self.alpha, 1 - self.alpha)
        losses = share * wrong**self.gamma * F.softplus(-sign * logits)
        return torch.where(valid, losses, 0.0).sum(dim=2) / valid.sum(dim=2).clamp(min=1)

    def _iou_error(self, logits: Tensor, truth: Tensor, valid: Tensor, predicted: Tensor) -> Tensor:
        marked = (logits > 0) & valid
        union = (marked | truth).sum(dim=2).clamp(min=1)
        error = predicted - (marked & truth).sum(dim=2) / union
        return error.abs() if self.iou_l1 else error.square()


def _dice(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    marked = torch.where(valid, torch.sigmoid(logits), 0.0)
    overlap = torch.where(truth, marked, 0.0).sum(dim=2)
    return 1 - (2 * overlap + 1) / (marked.sum(dim=2) + truth.sum(dim=2) + 1)


def _mean_over_processes(clips: int, device: torch.device) -> float:
    if not (dist.is_available() and dist.is_initialized()):
        return float(clips)
    total = torch.tensor(float(clips), device=device)
    dist.all_reduce(total)
    return max(1.0, float(total) / dist.get_world_size())
