"""Which memory rows the decoder drew on while it wrote.

While a token t is written, each position of the decoder's input gets attention; a_t is that of the last position,
averaged over layers and heads. The positions of a memory stream belong to the 14 disease queries: query q asked the
bank, and what came back was a mixture of rows j with the association weights w_qj (mean over the memory's heads; over
all rows they sum to 1). So of the attention that a sentence s paid to a memory, row j has the share

    share_sj = Σ_q α_sq w_qj,    α_sq = ā_sq / Σ_p ā_sp,    ā_sq = mean over the tokens t of s of a_t at position q,

and all shares of a sentence sum to 1. With α_sq = 1/14 it is the share that the row has of what the film retrieved.
Attention says what was looked at, not why a word was chosen (Jain & Wallace 2019, arXiv:1902.10186).

Shape legend: Q = 14 queries, K rows kept of each, P positions of the streams, S positions of the decoder.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Association(NamedTuple):
    """What each query retrieves most of: weights [Q, K], descending, and row numbers [Q, K] (−1: no further row)."""

    weights_QK: Tensor
    rows_QK: Tensor

    def top_rows(self, alpha_Q: Tensor, count: int) -> list[dict[str, Any]]:
        """The rows with the largest Σ_q α_q w_qj: ``{"row", "weight"}``, heaviest first."""
        rows, place = self.rows_QK.unique(return_inverse=True)
        share = torch.zeros(len(rows), dtype=torch.float64)
        share.index_add_(0, place.flatten(), (alpha_Q.double()[:, None] * self.weights_QK.double()).flatten())
        share[rows < 0] = 0.0
        order = share.argsort(descending=True, stable=True)[:count].tolist()
        return [{"row": int(rows[i]), "weight": round(float(share[i]), 6)} for i in order if share[i] > 0]


@contextmanager
def record_attention(decoder: Any) -> Iterator[deque[Tensor]]:
    """Inside, each forward of the decoder (one study) appends its last position's attention [S], float32 on the CPU.

    The decoder must compute attention in the open (``eager``): fused kernels never hold the weights.
    """
    model = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    steps: deque[Tensor] = deque()

    def ask(_: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**options, "output_attentions": True}

    def keep(_: Any, __: Any, output: Any) -> None:
        layers = [layer_1HTS[0, :, -1] for layer_1HTS in output.attentions]
        steps.append(torch.stack(layers).float().mean((0, 1)).cpu())

    handles = model.register_forward_pre_hook(ask, with_kwargs=True), model.register_forward_hook(keep)
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()
