"""SAM2 whose masks have a logit for every voxel, for slices of any size.

What differs from SAM2: the trunk (`etsam.network.voxel_trunk`), memory attention within windows
(`etsam.network.window_attention`), and the mask decoder, which goes on from a quarter of the side, where SAM2's ends,
to every voxel. Prompts, memory bank, memory encoder, object pointers and the decoder's transformer are SAM2's.

The logits are those of the trunk's own head plus what the mask decoder adds. With new weights it adds nothing at all,
so that a trained trunk is a good network from the first step, and memory and prompts are learnt on top of it. How much
they add has to be measured, not assumed.

Import this module only through the config's `_target_`: SAM2 is imported by `etsam.network.build`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from etsam.network.build import import_sam2

import_sam2()

from sam2.modeling.sam.mask_decoder import MaskDecoder  # noqa: E402
from sam2.modeling.sam.transformer import TwoWayTransformer  # noqa: E402
from sam2.modeling.sam2_base import SAM2Base  # noqa: E402

PROMPT_LOGIT = 10.0  # a mask prompt is remembered as logits of +-10 (SAM2)
_STRIDE = 16  # of the tokens; SAM2's memory encoder and prompt encoder are made for it
_REFUSED = ("multimask_output_in_sam", "pred_obj_scores")  # membrane is a kind of thing and not one object


class VoxelMaskDecoder(MaskDecoder):
    """SAM2's mask decoder with two more steps of upscaling, and one mask.

    Parameters
    ----------
    transformer
        Of prompts and image.
    transformer_dim
        C of the tokens.
    channels
        Of the trunk at strides 1, 2, 4 and 8.
    widths
        Of the decoder at these strides.
    iou_prediction_use_sigmoid
        As of SAM2's.
    """

    def __init__(
        self,
        transformer: nn.Module,
        transformer_dim: int,
        channels: list[int],
        widths: list[int],
        *,
        iou_prediction_use_sigmoid: bool = False,
    ) -> None:
        super().__init__(
            transformer=transformer,
            transformer_dim=transformer_dim,
            num_multimask_outputs=0,
            iou_head_hidden_dim=transformer_dim,
            iou_prediction_use_sigmoid=iou_prediction_use_sigmoid,
        )
        self.widths = list(widths)
        self.fine = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in zip(channels, widths, strict=True))
        coarse = [*widths[1:], transformer_dim]
        self.output_upscaling = nn.ModuleList(
            nn.ConvTranspose2d(*pair, kernel_size=2, stride=2) for pair in zip(coarse, widths, strict=True)
        )
        weights = self.output_hypernetworks_mlps[0].layers
        weights[-1] = nn.Linear(weights[-1].in_features, widths[0])
        nn.init.zeros_(weights[-1].weight)
        nn.init.zeros_(weights[-1].bias)

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        repeat_image: bool,
        high_res_features: list[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (B, 1, H, W), predicted IoU (B, 1), the mask's token (B, 1, C), object score (B, 1), always 10.

        `high_res_features` are the trunk's logits, and its features at strides 1, 2, 4 and 8 through `fine`.
        """
        logits, *fine = high_res_features
        batch, _, *size = image_embeddings.shape
        outputs = torch.cat([self.iou_token.weight, self.mask_tokens.weight])  # (2, C)
        tokens = torch.cat([outputs.expand(batch, -1, -1), sparse_prompt_embeddings], dim=1)
        places = image_pe.expand(batch, -1, -1, -1)
        read, image = self.transformer(image_embeddings + dense_prompt_embeddings, places, tokens)
        upscaled = image.transpose(1, 2).unflatten(2, size)  # (B, C, H / 16, W / 16)
        for step, features in zip(reversed(self.output_upscaling), reversed(fine), strict=True):
            upscaled = nn.functional.gelu(step(upscaled) + features)
        weights = self.output_hypernetworks_mlps[0](read[:, 1])  # (B, widths[0])
        added = torch.einsum("bc,bchw->bhw", weights, upscaled)[:, None]
        ious = self.iou_prediction_head(read[:, 0])
        return logits + added, ious, read[:, 1:2], torch.full_like(ious, PROMPT_LOGIT)


class VoxelSAM2(SAM2Base):
    """SAM2 with logits at every voxel.

    Parameters
    ----------
    image_encoder
        A `VoxelEncoder`.
    memory_attention
        A `WindowAttention`.
    memory_encoder
        SAM2's, of stride 16.
    decoder_widths
        Channels of the mask decoder at strides 1, 2, 4 and 8.
    decoder_mlp
        Width of the hidden layers of its transformer.
    tile_step
        Sides of images are multiples of so many voxels.
    image_size
        Side of the largest tile, voxels.
    settings
        The others of `SAM2Base`. One mask, no object score.

    Raises
    ------
    ValueError
        If settings ask for what this network has not got, or the trunk's coarsest stride is not 16.
    """

    def __init__(
        self,
        image_encoder: Any,
        memory_attention: Any,
        memory_encoder: nn.Module,
        *,
        decoder_widths: list[int],
        decoder_mlp: int = 512,
        tile_step: int = _STRIDE,
        image_size: int = 512,
        **settings: Any,
    ) -> None:
        asked = [name for name in _REFUSED if settings.get(name)]
        if asked:
            raise ValueError(f"net.{asked[0]} has to be false: this network gives one mask and no object score")
        if image_encoder.trunk.stride != _STRIDE or tile_step % _STRIDE:
            raise ValueError(f"net: the trunk needs five levels, and tile_step is a multiple of {_STRIDE}")
        self._decoder = list(decoder_widths), decoder_mlp
        super().__init__(image_encoder, memory_attention, memory_encoder, image_size=image_size, **settings)
        self.num_feature_levels = 2 + len(decoder_widths)  # the trunk's logits, its finer levels, the coarsest
        self.tile_step, self.least_side = tile_step, _STRIDE * memory_attention.window

    def _build_sam_heads(self) -> None:
        super()._build_sam_heads()
        widths, mlp = self._decoder
        transformer = TwoWayTransformer(depth=2, embedding_dim=self.hidden_dim, num_heads=8, mlp_dim=mlp)
        self.sam_mask_decoder = VoxelMaskDecoder(
            transformer,
            self.hidden_dim,
            self.image_encoder.trunk.channel_list[:-1],
            widths,
            iou_prediction_use_sigmoid=self.iou_prediction_use_sigmoid,
        )

    def forward_image(self, img_batch: Tensor) -> dict[str, Any]:
        """Levels of images (B, K, H, W): the trunk's logits, its finer features for the mask decoder, tokens."""
        encoded: dict[str, Any] = self.image_encoder(img_batch)
        logits, *fine, coarse = encoded["backbone_fpn"]
        fine = [project(level) for project, level in zip(self.sam_mask_decoder.fine, fine, strict=True)]
        return {**encoded, "backbone_fpn": [logits, *fine, coarse]}

    def _forward_sam_heads(
        self,
        backbone_features: Tensor,
        point_inputs: dict[str, Tensor] | None = None,
        mask_inputs: Tensor | None = None,
        high_res_features: list[Tensor] | None = None,
        multimask_output: bool = False,
    ) -> tuple[Tensor, ...]:
        """Decode tokens (B, C, H / 16, W / 16) of any size; gives what SAM2's own gives, all logits at every voxel."""
        batch, _, *size = backbone_features.shape
        device = backbone_features.device
        prompts = self.sam_prompt_encoder  # made for one size; what it is told here is the size of this image
        prompts.image_embedding_size = tuple(size)
        prompts.input_image_size = tuple(_STRIDE * side for side in size)
        prompts.mask_input_size = tuple(_STRIDE // 4 * side for side in size)
        points = torch.zeros(batch, 1, 2, device=device), -torch.ones(batch, 1, dtype=torch.int32, device=device)
        if point_inputs is not None:
            points = point_inputs["point_coords"], point_inputs["point_labels"]
        if mask_inputs is not None and tuple(mask_inputs.shape[-2:]) != prompts.mask_input_size:
            mask_inputs = nn.functional.interpolate(
                mask_inputs.float(), prompts.mask_input_size, mode="bilinear", align_corners=False, antialias=True
            )
        sparse, dense = prompts(points=points, boxes=None, masks=mask_inputs)
        logits, ious, tokens, score = self.sam_mask_decoder(
            image_embeddings=backbone_features,
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            repeat_image=False,
            high_res_features=high_res_features,
        )
        return self._outputs(logits.float(), ious, self.obj_ptr_proj(tokens[:, 0]), score)

    def _use_mask_as_output(
        self, backbone_features: Tensor, high_res_features: list[Tensor] | None, mask_inputs: Tensor
    ) -> tuple[Tensor, ...]:
        """A mask prompt (B, 1, H, W), 0 or 1, as logits; its pointer is what the decoder makes of it."""
        mask = mask_inputs.float()
        heads = self._forward_sam_heads(
            backbone_features, mask_inputs=self.mask_downsample(mask), high_res_features=high_res_features
        )
        score = PROMPT_LOGIT * (2 * mask.flatten(1).any(dim=1, keepdim=True).float() - 1)
        return self._outputs(PROMPT_LOGIT * (2 * mask - 1), mask.new_ones(len(mask), 1), heads[5], score)

    @staticmethod
    def _outputs(logits: Tensor, ious: Tensor, pointer: Tensor, score: Tensor) -> tuple[Tensor, ...]:
        """SAM2's seven: candidates at two resolutions, IoUs, the best at two resolutions, pointer, object score."""
        return logits, logits, ious, logits, logits, pointer, score
