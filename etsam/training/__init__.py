"""Training of one stage: what a clip is prompted with, its forward through the tracker of inference, its losses."""

from etsam.training.clip import SliceOutput, forward_clip
from etsam.training.losses import Losses, MaskLosses
from etsam.training.prompting import ClipPlan, PromptSampler

__all__ = ["ClipPlan", "Losses", "MaskLosses", "PromptSampler", "SliceOutput", "forward_clip"]
