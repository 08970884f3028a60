"""Images attenuated where a network attends to them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from spurcor.models.backbone import Backbone

ENLARGED = 1 << 24  # values of enlarged maps held in memory at once


@torch.no_grad()
def attenuated(backbone: Backbone, layer: str, x: Tensor, quantile: float) -> Tensor:
    """Return x (1 - m / 2), where m (B, 1, H, W) is the share of channels that attend to a pixel.

    A channel of the layer attends where its map, scaled to [0, 1] over the batch and enlarged to
    the image, exceeds the `quantile` of all scaled values. masktune_models compares with the
    quantile of the values before scaling, which is on another scale.
    """
    training = backbone.training
    backbone.eval()  # the extra pass must not update batch-norm statistics
    output, _ = backbone.through(x, layer)
    backbone.train(training)
    A = backbone.maps(layer, output.float(), *x.shape[2:])  # noqa: N806
    A = (A - A.min()) / (A.max() - A.min()).clamp(min=torch.finfo(A.dtype).tiny)  # noqa: N806
    rank = round(quantile * (A.numel() - 1)) + 1
    threshold = A.flatten().kthvalue(rank).values
    above = torch.zeros_like(x[:, :1])
    for some in torch.split(A, max(1, ENLARGED // above.numel()), dim=1):
        enlarged = F.interpolate(some, x.shape[2:], mode="bilinear", align_corners=False)
        above += (enlarged > threshold).sum(1, keepdim=True)
    return x * (1 - above / A.shape[1] / 2)
