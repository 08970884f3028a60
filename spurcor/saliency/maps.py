"""Class activation maps: the image regions on which a prediction depends.

A (B, D, h, w) are the activations of a layer, and G, of the same shape, the gradients of the score,
the logit of the predicted class.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from spurcor.training.method import Method

Saliency = Literal["xgrad_cam", "grad_cam", "layer_cam"]
EPSILON = 1e-7  # as in the authors' code of XGrad-CAM


def xgrad_cam(A: Tensor, G: Tensor) -> Tensor:  # noqa: N803 - the papers' symbols
    """Return XGrad-CAM maps H (B, h, w).

    H = ReLU(sum_k alpha_k A^k), alpha_k = sum_ij G^k_ij A^k_ij / (sum_ij A^k_ij + 1e-7). Fu et al.
    (BMVC 2020).
    """
    alpha = (G * A).sum((2, 3)) / (A.sum((2, 3)) + EPSILON)
    return torch.einsum("bk,bkij->bij", alpha, A).relu()


def grad_cam(A: Tensor, G: Tensor) -> Tensor:  # noqa: N803
    """Return Grad-CAM maps H (B, h, w).

    H = ReLU(sum_k alpha_k A^k), alpha_k the mean of G^k. Selvaraju et al. (ICCV 2017).
    """
    return torch.einsum("bk,bkij->bij", G.mean((2, 3)), A).relu()


def layer_cam(A: Tensor, G: Tensor) -> Tensor:  # noqa: N803
    """Return LayerCAM maps H (B, h, w).

    H = ReLU(sum_k ReLU(G^k) A^k), separately at each position. Jiang et al. (TIP 2021).
    """
    return (G.relu() * A).sum(1).relu()


SALIENCY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "xgrad_cam": xgrad_cam,
    "grad_cam": grad_cam,
    "layer_cam": layer_cam,
}


def heat_maps(method: Method, x: Tensor, layer: str, saliency: Saliency = "xgrad_cam") -> Tensor:
    """Return heat maps (B, H, W) in [0, 1] of the predicted class for images x (B, C, H, W).

    For multilabel tasks it is the label with the largest logit. The method must be in eval mode, so
    that the images of a batch do not affect each other.
    """
    backbone = method.backbone
    with torch.enable_grad():
        output, features = backbone.through(x, layer)
        score = method.head(features).max(dim=1).values.sum()
        (gradient,) = torch.autograd.grad(score, output)
    A, G = (backbone.maps(layer, z.detach().float(), *x.shape[2:]) for z in (output, gradient))  # noqa: N806
    heat = _scaled(SALIENCY[saliency](A, G))
    heat = F.interpolate(heat[:, None], x.shape[2:], mode="bilinear", align_corners=False)
    return _scaled(heat[:, 0])


def _scaled(heat: Tensor) -> Tensor:
    """Scale each map to [0, 1]."""
    heat = heat - heat.amin((1, 2), keepdim=True)
    return heat / (EPSILON + heat.amax((1, 2), keepdim=True))
