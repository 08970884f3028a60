"""PruSC (Le, Schlötterer, Seifert, TMLR 2025): the subnetwork that does not rely on the shortcut.

Samples that share a shortcut lie close together in the representation of a network trained by ERM.
Gates on its weights are learnt on a set that balances the classes within such clusters, so that
classes separate within a cluster and come together across clusters; the remaining weights are then
trained a little further. Group labels are not used.

pi: logits of the gates, z: representation, c: cluster, s_ij = cos(z_i, z_j) / temperature.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.config.ranges import require_at_least, require_positive
from spurcor.data.groups import Batch, DataInfo
from spurcor.models.backbone import Backbone
from spurcor.pruning.clusters import Centres
from spurcor.pruning.debiasing import DebiasingSet, Sampling
from spurcor.pruning.gates import MaskLogit, gates_of
from spurcor.pruning.phases import Prune, Retrain
from spurcor.training.method import Method, Phase, Supervised


class Prusc(Method):
    """ERM (or the run `init`), then learning gates on its weights, then training the weights kept.

    Controls: `no_contrast` prunes without the contrastive term; `retrain_alone` does not prune and
    trains the dense network on the de-biasing set.
    """

    additive = True

    def __init__(
        self,
        backbone: Backbone,
        info: DataInfo,
        epochs: int,
        prune_epochs: int = 20,
        retrain_epochs: int = 5,
        init: str | None = None,
        clusters: Path | None = None,
        num_clusters: int = 16,
        sampling: Sampling = "balanced",
        lambda_sparse: float = 1e-8,
        lambda_con: float = 0.1,
        temperature: float = 0.07,
        mask_logit: MaskLogit = "sigmoid",
        prune_lr: float = 0.01,
        retrain_lr: float = 0.01,
        retrain_on: Literal["train", "val", "set"] = "train",
        control: Literal["none", "no_contrast", "retrain_alone"] = "none",
        centres: Centres = "directions",
    ) -> None:
        super().__init__(backbone, info)
        info.spec.require_classes("method=prusc")
        require_positive(
            num_clusters=num_clusters,
            prune_epochs=prune_epochs,
            retrain_epochs=retrain_epochs,
            temperature=temperature,
            prune_lr=prune_lr,
            retrain_lr=retrain_lr,
        )
        require_at_least(0, lambda_sparse=lambda_sparse, lambda_con=lambda_con)
        if control == "retrain_alone" and retrain_on != "set":
            raise ValueError(
                f"control=retrain_alone trains on the de-biasing set, not on retrain_on="
                f"{retrain_on}; set retrain_on=set"
            )
        self.epochs = epochs
        self.init = None if init is None else Path(init)
        self.set = DebiasingSet(clusters, num_clusters, sampling, centres)
        self.lambda_sparse, self.temperature = lambda_sparse, temperature
        self.lambda_con = 0.0 if control == "no_contrast" else lambda_con
        self.pruning = prune_epochs, prune_lr, mask_logit
        self.retraining = retrain_epochs, retrain_lr, retrain_on
        self.control = control

    def phases(self) -> Sequence[Phase]:
        """Return `erm` without `init`, `prune` except for `retrain_alone`, and `retrain`."""
        erm = Supervised("erm", self, self.epochs, self.reduce)
        prune = Prune(self, *self.pruning, self.set, self.terms)
        retrain = Retrain(self, *self.retraining, self.set, self.reduce)
        pruned = [retrain] if self.control == "retrain_alone" else [prune, retrain]
        return [erm, *pruned] if self.init is None else pruned

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return L = 1/B sum_i l_i."""
        return losses.mean()

    def terms(self, batch: Batch, cluster: Tensor, logits: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return L, lambda_sparse sum pi, and lambda_con sum_i con_i, from one forward pass."""
        z = self.backbone(batch.x)
        losses = self.losses(self.head(z), batch.y)
        sparse = torch.stack([pi.sum() for pi in logits])
        con = contrast(z, batch.y, cluster, self.temperature)
        return {
            "loss": losses.mean(),
            "loss_sparse": self.lambda_sparse * sparse.sum(),
            "loss_con": self.lambda_con * con.sum(),
        }

    def weights(self) -> list[nn.Parameter]:
        """Return the network's weights, without the gates' logits."""
        logits = {id(gate.logit) for gate in gates_of(self).values()}
        return [weight for weight in super().weights() if id(weight) not in logits]


def contrast(z: Tensor, y: Tensor, cluster: Tensor, temperature: float) -> Tensor:
    """Return contrastive losses (B,) of representations z (B, D); 0 for anchors without P or N.

    P(i): same class, another cluster. N(i): same cluster, another class.

    con_i = -1/|P| sum_{p in P} log(e^{s_ip} / (sum_{n in N} e^{s_in} + sum_{p' in P} e^{s_ip'})).
    """
    z = F.normalize(z, dim=1)
    s = z @ z.T / temperature
    same_class, same_cluster = (label[:, None] == label for label in (y, cluster))
    positive, negative = same_class & ~same_cluster, ~same_class & same_cluster
    anchor = positive.any(dim=1) & negative.any(dim=1)
    others = positive | negative | ~anchor[:, None]  # everything for non-anchors, to keep it finite
    total = s.masked_fill(~others, -torch.inf).logsumexp(dim=1)
    mean = (s * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return torch.where(anchor, total - mean, 0.0)
