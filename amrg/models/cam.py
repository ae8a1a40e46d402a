"""Class activation maps: where on the fine grid the evidence for each label lies.

Shape legend: B batch, K = 14 labels, H W fine grid (14×14 at 224 pixels), C channels.

All maps explain the pooled head, logit_k = logmeanexp over cells of (w_k · A + b_k), where A are the normalised fine
features. Its gradient is known in closed form: G_k = ∂ logit_k / ∂A = p_k w_k, where p_k is the softmax of the class's
scores over the cells.

================  ==========================================================================================
``gradcam``       ReLU(Σ_c mean_HW(G_kc) A_c): Selvaraju et al. 2017, arXiv:1610.02391
``gradcam++``     ReLU(Σ_c (Σ_HW α_kc ReLU(G_kc)) A_c): Chattopadhay et al. 2018, arXiv:1710.11063, eq. 19
``layercam``      ReLU(Σ_c ReLU(G_kc) A_c), cell by cell: Jiang et al. 2021, doi:10.1109/TIP.2021.3089943
``hirescam``      ReLU(Σ_c G_kc A_c), cell by cell: Draelos & Carin 2020, arXiv:2011.08891
================  ==========================================================================================

**Scale.** Maps are never stretched image by image: that would make a threshold relative, and the emptiest film's
noise as strong as a lesion. ``activation_scales`` gives each class one divisor, the median of its maps' maxima over the
train films it is found in. So 1 is the peak of a typical positive film, and τ = 0.5 half of it, on any film.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from amrg.errors import UserError
from amrg.models.classifier import DiseaseClassifier, LogSumExpHead


def activation_maps_of_images(model: DiseaseClassifier, images_B3HW: Tensor, method: str = "layercam") -> Tensor:
    """Maps of all 14 labels of a batch from one forward pass of the encoder.

    Args:
        model: a trained classifier.
        images_B3HW: in [0, 1], as the model takes them.
        method: a name from ``METHODS``; UserError otherwise.

    Returns:
        [B, K, H, W], at least 0, float32, unscaled (see the module's text).
    """
    with torch.no_grad():
        fine_BHWC = model(images_B3HW).fine_BHWC
    return activation_maps(model.cam_head, fine_BHWC, method)


def refuse_unknown(method: str) -> None:
    """Raises UserError unless there is an activation map of that name."""
    if method not in METHODS:
        raise UserError(f"banks.mining.method: there is no activation map `{method}`; known: {', '.join(METHODS)}")


@torch.no_grad()
def activation_maps(head: LogSumExpHead, fine_BHWC: Tensor, method: str = "layercam") -> Tensor:
    """The same from the fine features that ``head`` reads.

    Only the head's weights are read, so no forward of it is needed; they must be gathered (ZeRO 3) by the caller.
    """
    refuse_unknown(method)
    features_BHWC, weight_KC = fine_BHWC.float(), head.linear.weight.float()
    with torch.autocast(fine_BHWC.device.type, enabled=False):  # in float32 for the bank and for a film that asks it
        scores_BKHW = torch.einsum("bhwc,kc->bkhw", features_BHWC, weight_KC)  # the bias of a class moves no softmax
        p_BKHW = scores_BKHW.flatten(2).softmax(-1).view_as(scores_BKHW)
        return METHODS[method](features_BHWC, weight_KC, p_BKHW).clamp(min=0)


def activation_scales(peaks: list[list[float]]) -> list[float]:
    """One divisor for each class, from the maxima of its maps on the films it is found in; 1 without such a film."""
    medians = [float(torch.tensor(values).median()) if values else 0.0 for values in peaks]
    return [median if median > 0 else 1.0 for median in medians]


def _gradcam(features_BHWC: Tensor, weight_KC: Tensor, p_BKHW: Tensor) -> Tensor:
    cells = p_BKHW.shape[2] * p_BKHW.shape[3]  # over which p sums to 1, so the mean gradient is w / cells
    return torch.einsum("kc,bhwc->bkhw", weight_KC, features_BHWC) / cells


def _gradcam_plus_plus(features_BHWC: Tensor, weight_KC: Tensor, p_BKHW: Tensor) -> Tensor:
    maps = []
    for weight_C, p_BHW in zip(weight_KC, p_BKHW.unbind(1), strict=True):  # a class at a time: G has H·W·C numbers
        gradient_BHWC = p_BHW[..., None] * weight_C
        squared_BHWC = gradient_BHWC**2
        denominator = 2 * squared_BHWC + gradient_BHWC**3 * features_BHWC.sum(dim=(1, 2), keepdim=True)
        alpha_BHWC = torch.where(denominator != 0, squared_BHWC / denominator, 0.0)
        weighted_BC = (alpha_BHWC * gradient_BHWC.relu()).sum(dim=(1, 2))
        maps.append(torch.einsum("bc,bhwc->bhw", weighted_BC, features_BHWC))
    return torch.stack(maps, dim=1)


def _layercam(features_BHWC: Tensor, weight_KC: Tensor, p_BKHW: Tensor) -> Tensor:
    return p_BKHW * torch.einsum("kc,bhwc->bkhw", weight_KC.relu(), features_BHWC)


def _hirescam(features_BHWC: Tensor, weight_KC: Tensor, p_BKHW: Tensor) -> Tensor:
    return p_BKHW * torch.einsum("kc,bhwc->bkhw", weight_KC, features_BHWC)


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "gradcam": _gradcam,
    "gradcam++": _gradcam_plus_plus,
    "layercam": _layercam,
    "hirescam": _hirescam,
}
