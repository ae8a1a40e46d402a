"""Class activation maps: where on the fine grid the evidence for each label lies.

Shape legend: B batch, K = 14 labels, H W fine grid (14×14 at 224 pixels), C channels.

All maps explain the pooled head, logit_k = logmeanexp over cells of (w_k · A + b_k), where A are the normalised fine
features. With G_k = ∂ logit_k / ∂A:

================  ==========================================================================================
``gradcam``       ReLU(Σ_c mean_HW(G_kc) A_c): Selvaraju et al. 2017, arXiv:1610.02391
``gradcam++``     ReLU(Σ_c (Σ_HW α_kc ReLU(G_kc)) A_c): Chattopadhay et al. 2018, arXiv:1710.11063, eq. 19
``layercam``      ReLU(Σ_c ReLU(G_kc) A_c), cell by cell: Jiang et al. 2021, doi:10.1109/TIP.2021.3089943
``hirescam``      ReLU(Σ_c G_kc A_c), cell by cell: Draelos & Carin 2020, arXiv:2011.08891
================  ==========================================================================================

**Scale.** Maps are never stretched image by image: that would make a threshold relative, and the emptiest film's
noise as strong as a lesion. ``class_scales`` gives each class one divisor, the median of its maps' maxima over the
train films it is found in. So 1 is the peak of a typical positive film, and τ = 0.5 half of it, on any film.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from amrg.errors import UserError
from amrg.models.stage1 import DiseaseClassifier


def cam(model: DiseaseClassifier, images_B3HW: Tensor, method: str = "gradcam") -> Tensor:
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


def activation_maps(head: Callable[[Tensor], Tensor], fine_BHWC: Tensor, method: str = "gradcam") -> Tensor:
    """The same from the fine features that ``head`` (features [B, H, W, C] → logits [B, K]) reads.

    Films do not influence each other's logits, so the gradient of a logit summed over the batch is that of each
    film; the labels' gradients are taken together, through the head alone.
    """
    if method not in METHODS:
        raise UserError(f"banks.mining.method: there is no activation map `{method}`; known: {', '.join(METHODS)}")
    features_BHWC = fine_BHWC.detach().float().requires_grad_()
    with torch.enable_grad():
        total_K = head(features_BHWC).float().sum(dim=0)
        (gradient_KBHWC,) = torch.autograd.grad(
            total_K, features_BHWC, torch.eye(len(total_K), device=total_K.device), is_grads_batched=True
        )
    with torch.no_grad():
        maps_KBHW = METHODS[method](features_BHWC, gradient_KBHWC)
    return maps_KBHW.clamp(min=0).transpose(0, 1)


def class_scales(peaks: list[list[float]]) -> list[float]:
    """One divisor for each class, from the maxima of its maps on the films it is found in; 1 without such a film."""
    medians = [float(torch.tensor(values).median()) if values else 0.0 for values in peaks]
    return [median if median > 0 else 1.0 for median in medians]


def _gradcam(features_BHWC: Tensor, gradient_KBHWC: Tensor) -> Tensor:
    return torch.einsum("kbc,bhwc->kbhw", gradient_KBHWC.mean(dim=(2, 3)), features_BHWC)


def _gradcam_plus_plus(features_BHWC: Tensor, gradient_KBHWC: Tensor) -> Tensor:
    squared_KBHWC = gradient_KBHWC**2
    denominator = 2 * squared_KBHWC + gradient_KBHWC**3 * features_BHWC.sum(dim=(1, 2), keepdim=True)
    alpha_KBHWC = torch.where(denominator != 0, squared_KBHWC / denominator, 0.0)
    return torch.einsum("kbc,bhwc->kbhw", (alpha_KBHWC * gradient_KBHWC.relu()).sum(dim=(2, 3)), features_BHWC)


def _layercam(features_BHWC: Tensor, gradient_KBHWC: Tensor) -> Tensor:
    return (gradient_KBHWC.relu() * features_BHWC).sum(dim=-1)


def _hirescam(features_BHWC: Tensor, gradient_KBHWC: Tensor) -> Tensor:
    return (gradient_KBHWC * features_BHWC).sum(dim=-1)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": _gradcam,
    "gradcam++": _gradcam_plus_plus,
    "layercam": _layercam,
    "hirescam": _hirescam,
}
