"""Attribution of generated sentences to memory rows, from the decoder's attention.

a_t is the attention of the last position when token t is written, averaged over layers and heads. The positions of a
memory stream belong to the 14 disease queries. The vector at position q is a mixture of bank rows j with the
association weights w_qj (mean over the memory's heads; they sum to 1 over all rows). Row j's share of the attention of
sentence s to a memory is

    share_sj = Σ_q α_sq w_qj,    α_sq = ā_sq / Σ_p ā_sp,    ā_sq = mean over the tokens t of s of a_t at position q,

and all shares of a sentence sum to 1. With α_sq = 1/14 it is the row's mean association weight over the film's queries.
Attention does not explain why a word was chosen (Jain & Wallace 2019, arXiv:1902.10186).

Shape legend: Q = 14 queries, K rows per query, P positions of the streams, S positions of the decoder.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Association(NamedTuple):
    """Heaviest rows per query: weights [Q, K], descending, and row numbers [Q, K] (−1: no further row)."""

    weights_QK: Tensor
    rows_QK: Tensor

    def top_rows(self, alpha_Q: Tensor, count: int) -> list[dict[str, Any]]:
        """Return the rows with the largest Σ_q α_q w_qj as ``{"row", "weight"}``, heaviest first."""
        rows, place = self.rows_QK.unique(return_inverse=True)
        share = torch.zeros(len(rows), dtype=torch.float64)
        share.index_add_(0, place.flatten(), (alpha_Q.double()[:, None] * self.weights_QK.double()).flatten())
        share[rows < 0] = 0.0
        order = share.argsort(descending=True, stable=True)[:count].tolist()
        return [{"row": int(rows[i]), "weight": round(float(share[i]), 6)} for i in order if share[i] > 0]


@contextmanager
def record_attention(decoder: Any) -> Iterator[deque[Tensor]]:
    """Record the last position's attention [S], float32 on the CPU, of each forward of the decoder (one study).

    The decoder must use ``eager`` attention, since fused kernels do not return the weights.
    """
    model = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    steps: deque[Tensor] = deque()

    def request_weights(_: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**options, "output_attentions": True}

    def keep(_: Any, __: Any, output: Any) -> None:
        layers = [layer_1HTS[0, :, -1] for layer_1HTS in output.attentions]
        steps.append(torch.stack(layers).float().mean((0, 1)).cpu())

    handles = model.register_forward_pre_hook(request_weights, with_kwargs=True), model.register_forward_hook(keep)
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()
