"""Attention to memories within windows of a slice, so that a slice of any size looks like those of training.

A network that attends to whole slices learns it on crops of some 64 tokens, and meets a thousand in prediction: its
softmax is spread over sixteen times as many memories, and its rotary positions go where they never were. What memory
has to say of a membrane lies near the same place of the slices before. So each window of tokens attends to the memories
of the same window, and to all pointers. Windows overlap where a slice is no multiple of them.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from etsam.spans import spread


class WindowAttention(nn.Module):
    """SAM2's memory attention, window by window.

    Parameters
    ----------
    attention
        A `sam2.modeling.memory_attention.MemoryAttention`; its `feat_sizes` are those of a window.
    window
        Side of a window, tokens; no map may be smaller.
    overlap
        Least overlap of neighbouring windows, tokens. Each token is attended to in the window whose middle is nearest.
    """

    needs_size = True

    def __init__(self, attention: nn.Module, window: int = 8, overlap: int = 2) -> None:
        super().__init__()
        self.attention, self.window, self.overlap = attention, window, overlap

    def forward(
        self,
        curr: list[Tensor],
        curr_pos: list[Tensor],
        memory: Tensor,
        memory_pos: Tensor,
        num_obj_ptr_tokens: int,
        size: tuple[int, int],
    ) -> Tensor:
        """As the attention itself, for a map of `size` (H, W): (H*W, B, C) to (H*W, B, C).

        Raises
        ------
        ValueError
            If the map is smaller than a window.
        """
        into, back = _windows(*size, self.window, self.overlap, memory.device)
        num_windows = len(into)

        def cut(maps: Tensor) -> Tensor:
            """(slots*H*W, B, C) -> (slots*tokens, windows*B, C)."""
            pieces = maps.unflatten(0, (-1, size[0] * size[1]))[:, into]  # (slots, windows, tokens, B, C)
            return pieces.transpose(1, 2).flatten(2, 3).flatten(0, 1)

        def cut_memory(maps: Tensor) -> Tensor:
            places = len(maps) - num_obj_ptr_tokens
            pointers = maps[places:, None].expand(-1, num_windows, -1, -1).flatten(1, 2)
            return torch.cat([cut(maps[:places]), pointers])

        attended = self.attention(
            curr=[cut(curr[0])],
            curr_pos=[cut(curr_pos[0])],
            memory=cut_memory(memory),
            memory_pos=cut_memory(memory_pos),
            num_obj_ptr_tokens=num_obj_ptr_tokens,
        )  # (tokens, windows*B, C)
        pieces = attended.unflatten(1, (num_windows, -1)).flatten(0, 1)  # (tokens*windows, B, C)
        return pieces[back]


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # training may take what prediction computed
def _windows(height: int, width: int, window: int, overlap: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens of each window, (windows, window * window); and where each token of the map is found, (H * W,).

    The latter counts through (window * window, windows).
    """
    if min(height, width) < window:
        raise ValueError(f"a map of {height} x {width} tokens is smaller than a window of {window}")
    starts = [[start for start, _ in spread(length, window, overlap)] for length in (height, width)]
    places = torch.arange(window)
    tokens = [torch.tensor(first)[:, None] + places for first in starts]  # rows and columns of the windows
    into = tokens[0][:, None, :, None] * width + tokens[1][None, :, None, :]  # (rows, columns, window, window)
    row, column = (_nearest(length, first, window) for length, first in zip((height, width), starts, strict=True))
    chosen = row[0][:, None] * len(starts[1]) + column[0]  # (H, W): which window
    place = row[1][:, None] * window + column[1]  # which of its tokens
    num_windows = len(starts[0]) * len(starts[1])
    back = (place * num_windows + chosen).flatten()
    return into.reshape(num_windows, window * window).to(device), back.to(device)


def _nearest(length: int, starts: list[int], window: int) -> tuple[Tensor, Tensor]:
    """Window whose middle is nearest to each of `length` tokens in a row, and the token's place in it."""
    middles = torch.tensor(starts) + (window - 1) / 2
    tokens = torch.arange(length)
    chosen = (tokens[:, None] - middles).abs().argmin(dim=1)
    return chosen, tokens - torch.tensor(starts)[chosen]
