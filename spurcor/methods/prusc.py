"""PruSC (Le, Schlötterer, Seifert, TMLR 2025): the subnetwork that does not rely on the shortcut.

Samples that share a shortcut lie together in the representation of a network trained by ERM. Gates
on its weights are learnt on a set that balances the classes within such clusters, so that classes
part inside a cluster and meet across clusters; what the gates leave is trained a little further.
No group label is read.

pi logits of the gates, z representation, c cluster, s_ij = cos(z_i, z_j) / temperature.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spurcor.data.groups import Batch, DataInfo, Split
from spurcor.data.streams import Stream
from spurcor.models import weights as checkpoint
from spurcor.models.backbone import Backbone
from spurcor.pruning import gates
from spurcor.pruning.clusters import Centres
from spurcor.pruning.debiasing import DebiasingSet, Sampling
from spurcor.system.files import write_json
from spurcor.training.method import Method, Phase, RunContext, Supervised

log = logging.getLogger(__name__)


class Prusc(Method):
    """ERM, or the run that `init` names; then gates on its weights; then its open weights again.

    Controls: `no_contrast` prunes without the contrastive term, `retrain_alone` does not prune and
    trains the dense network on the de-biasing set.
    """

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
        mask_logit: gates.MaskLogit = "sigmoid",
        prune_lr: float = 0.01,
        retrain_lr: float = 0.01,
        retrain_on: Literal["train", "val", "set"] = "train",
        control: Literal["none", "no_contrast", "retrain_alone"] = "none",
        centres: Centres = "directions",
    ) -> None:
        super().__init__(backbone, info)
        info.spec.require_groups("method=prusc")
        for name, value in {
            "num_clusters": num_clusters,
            "prune_epochs": prune_epochs,
            "retrain_epochs": retrain_epochs,
            "temperature": temperature,
            "prune_lr": prune_lr,
            "retrain_lr": retrain_lr,
        }.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be positive, and finite")
        for name, value in {"lambda_sparse": lambda_sparse, "lambda_con": lambda_con}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be at least 0, and finite")
        if control == "retrain_alone" and retrain_on != "set":
            raise ValueError(
                f"control=retrain_alone trains on the de-biasing set, not on retrain_on="
                f"{retrain_on}; say retrain_on=set"
            )
        self.epochs, self.prune_epochs, self.retrain_epochs = epochs, prune_epochs, retrain_epochs
        self.init = None if init is None else Path(init)
        self.set = DebiasingSet(clusters, num_clusters, sampling, centres)
        self.lambda_sparse, self.temperature = lambda_sparse, temperature
        self.lambda_con = 0.0 if control == "no_contrast" else lambda_con
        self.mask_logit, self.prune_lr, self.retrain_lr = mask_logit, prune_lr, retrain_lr
        self.retrain_on, self.control = retrain_on, control

    def phases(self) -> Sequence[Phase]:
        """`erm` where no run is started from, `prune` but for one control, and `retrain`."""
        erm = Supervised("erm", self, self.epochs, self.reduce)
        retrain = Retrain(self)
        pruned = [retrain] if self.control == "retrain_alone" else [Prune(self), retrain]
        return [erm, *pruned] if self.init is None else pruned

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """L = 1/B sum_i l_i."""
        return losses.mean()

    def weights(self) -> list[nn.Parameter]:
        """Those of the network: logits of gates are not among what analyses differentiate."""
        logits = {id(gate.logit) for gate in gates.gates_of(self).values()}
        return [weight for weight in super().weights() if id(weight) not in logits]

    def kept(self) -> dict[str, Tensor]:
        """Shares of the weights that are kept, of all and of each layer."""
        found = gates.gates_of(self)
        if not found:
            return {}
        counts = [gate.kept.sum() for gate in found.values()]
        sizes = [gate.logit.numel() for gate in found.values()]
        layers = zip(found, counts, sizes, strict=True)
        return {
            "kept": torch.stack(counts).sum() / sum(sizes),
            **{f"kept/{layer_of(name)}": count / size for name, count, size in layers},
        }


def layer_of(name: str) -> str:
    """`conv1` of `backbone.conv1.weight`, `attn.in_proj` of `backbone.attn.in_proj_weight`."""
    return name.removeprefix("backbone.").removesuffix("weight").rstrip("._")


def contrast(z: Tensor, y: Tensor, cluster: Tensor, temperature: float) -> Tensor:
    """Contrastive losses (B,) of representations z (B, D); 0 of an anchor without P or N.

    P(i): same class, another cluster. N(i): same cluster, another class.
    con_i = -1/|P| sum_{p in P} log(e^{s_ip} / (sum_{n in N} e^{s_in} + sum_{p' in P} e^{s_ip'})).
    """
    z = F.normalize(z, dim=1)
    s = z @ z.T / temperature
    same_class, same_cluster = (label[:, None] == label for label in (y, cluster))
    positive, negative = same_class & ~same_cluster, ~same_class & same_cluster
    anchor = positive.any(dim=1) & negative.any(dim=1)
    others = positive | negative | ~anchor[:, None]  # of no anchor all, so that it is finite
    total = s.masked_fill(~others, -torch.inf).logsumexp(dim=1)
    mean = (s * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return torch.where(anchor, total - mean, 0.0)


class Prune(Phase):
    """Learn the logits of the gates on the de-biasing set; weights are left alone.

    Batch norm goes on counting, as upstream, and `retrain` counts anew with the fixed masks.
    """

    name = "prune"

    def __init__(self, method: Prusc) -> None:
        self.method, self.epochs = method, method.prune_epochs

    def check(self, run: RunContext) -> None:
        """Clusters can be made, or those given fit."""
        self.method.set.check(run)

    def setup(self, run: RunContext) -> None:
        """Gates on all weights; Adam on their logits, whatever optimiser the weights have."""
        gates.attach(self.method, self.method.mask_logit)
        self.logits = [gate.logit for gate in gates.gates_of(self.method).values()]
        self.optimizer = torch.optim.Adam(self.logits, lr=self.method.prune_lr)

    def begin(self, run: RunContext) -> None:
        """Clusters and the de-biasing set; the gates are all open, so this sees the dense net."""
        self.method.set.make(self.method.backbone, run)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """The de-biasing set."""
        stream, self.clusters = self.method.set.stream(run, self.name)
        return {self.name: stream}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The mean loss, lambda_sparse sum pi, and lambda_con sum_i con_i, by one forward pass."""
        method = self.method
        z = method.backbone(batch.x)
        losses = method.losses(method.head(z), batch.y)
        sparse = torch.stack([pi.sum() for pi in self.logits])
        con = contrast(z, batch.y, self.clusters[batch.index], method.temperature)
        return {
            "loss": losses.mean(),
            "loss_sparse": method.lambda_sparse * sparse.sum(),
            "loss_con": method.lambda_con * con.sum(),
        }

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """One step on the sum of the terms, which has a gradient for the logits alone."""
        terms = self.terms(batches[self.name])
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(list(terms.values())).sum()
        torch.autograd.backward(loss, inputs=self.logits)
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()} | self.method.kept()

    def end_epoch(self) -> None:
        """The rate is constant."""

    def end(self, run: RunContext) -> None:
        """gates.safetensors with the logits, gates.json with what they keep; tell dead layers."""
        found = gates.gates_of(self.method)
        logits = {name: gate.logit.detach().cpu() for name, gate in found.items()}
        checkpoint.save_weights(run.directory / "gates.safetensors", logits)
        kept = {name: float(share) for name, share in self.method.kept().items()}
        sizes = {layer_of(name): logit.numel() for name, logit in logits.items()}
        layers = {name: {"kept": kept[f"kept/{name}"], "of": of} for name, of in sizes.items()}
        whole = {"kept": kept["kept"], "of": sum(sizes.values())}
        write_json(run.directory / "gates.json", {**whole, "layers": layers})
        if dead := [name for name, layer in layers.items() if layer["kept"] == 0]:
            log.warning(
                "no weight of %s is kept: what comes after sees nothing of the image; a smaller"
                " method.lambda_sparse, method.prune_lr or method.prune_epochs keeps more",
                ", ".join(dead),
            )

    def state_dict(self) -> dict[str, Any]:
        """The optimiser; logits are in the method, clusters and set in the run's directory."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The optimiser."""
        self.optimizer.load_state_dict(state["optimizer"])


class Retrain(Supervised):
    """Train what the masks leave, by the run's optimiser at a rate of its own."""

    method: Prusc

    def __init__(self, method: Prusc) -> None:
        split = Split.VAL if method.retrain_on == "val" else Split.TRAIN
        epochs, lr = method.retrain_epochs, method.retrain_lr
        super().__init__("retrain", method, epochs, method.reduce, split=split, lr=lr)

    def check(self, run: RunContext) -> None:
        """The split is there, and clusters can be made."""
        super().check(run)
        self.method.set.check(run)

    def setup(self, run: RunContext) -> None:
        """The gates stay as they are; the optimiser is of the weights again."""
        for gate in gates.gates_of(self.method).values():
            gate.logit.requires_grad_(False)
        super().setup(run)

    def begin(self, run: RunContext) -> None:
        """Clusters and the de-biasing set, where nothing was pruned on them."""
        if self.method.control == "retrain_alone":
            self.method.set.make(self.method.backbone, run)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """TRAIN, VAL or the de-biasing set, in an order of their own."""
        self.shares = self.method.kept()
        if self.method.retrain_on == "set":
            return {"train": self.method.set.stream(run, self.name)[0]}
        return {"train": run.stream(self.split, self.name)}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """An ordinary step on the masked network."""
        return super().step(batches) | self.shares
