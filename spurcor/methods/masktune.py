"""MaskTune (Asgari Taghanaki et al., NeurIPS 2022): hide what ERM looks at, and train on."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from spurcor.config.ranges import require_at_least, require_share
from spurcor.data.groups import Batch, DataInfo, Split
from spurcor.data.streams import Stream
from spurcor.models import weights
from spurcor.models.backbone import Backbone
from spurcor.saliency.maps import Saliency
from spurcor.saliency.masking import Mask, Masking, require_pixels
from spurcor.training import checkpoint
from spurcor.training.method import Method, Phase, RunContext, Supervised

KEPT = "val/average"  # what the weights are chosen by that the masks are made with


class MaskTune(Method):
    """ERM, then exactly one epoch on TRAIN without the pixels that ERM found most important.

    `mask`: `saliency`, black where the heat of the `layer` (the deepest map) is above mean +
    `deviations` std of an image's positive heat; `attention` (masktune_models), a pixel fainter
    the more channels of the layer are above their `quantile` there; `random`, a hole of the area
    of the saliency mask; `none`, just one more epoch. `iterations` masks anew after each
    fine-tuning and fine-tunes on, with `accumulative` hiding what was hidden before, too. The rate
    is ERM's last one, with its momentum, or `finetune_lr` with none. `init`: a finished run in the
    place of ERM; its momentum is not known, and the rate is `finetune_lr` or the optimiser's.
    """

    def __init__(
        self,
        backbone: Backbone,
        info: DataInfo,
        epochs: int,
        mask: Mask = "saliency",
        saliency: Saliency = "xgrad_cam",
        layer: int | str | None = None,
        deviations: float = 2.0,
        quantile: float = 0.75,
        iterations: int = 1,
        accumulative: bool = False,
        finetune_lr: float | None = None,
        init: str | None = None,
    ) -> None:
        super().__init__(backbone, info)
        require_pixels(info)
        require_at_least(1, iterations=iterations)
        require_at_least(0, deviations=deviations, finetune_lr=finetune_lr or 0.0)
        require_share(quantile=quantile)
        self.epochs, self.iterations, self.finetune_lr = epochs, iterations, finetune_lr
        layer, size = backbone.spatial(layer), info.shape[1:]
        self.masking = Masking(mask, layer, saliency, deviations, quantile, accumulative, size)
        self.init = None if init is None else Path(init)

    def phases(self) -> Sequence[Phase]:
        """`erm`, then `finetune`, `finetune2`, ..."""
        names = ["erm", "finetune", *(f"finetune{i + 2}" for i in range(self.iterations - 1))]
        erm = Erm("erm", self, self.epochs, self.reduce)
        finetune = [Finetune(self, name, before) for before, name in itertools.pairwise(names)]
        return [erm, *finetune] if self.init is None else finetune

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """L = 1/B sum_i l_i."""
        return losses.mean()


class Erm(Supervised):
    """ERM, whose last rate and best weights fine-tuning goes on with."""

    selection = KEPT

    def end_epoch(self) -> None:
        """Note the rate of this epoch, which may be the last, before the schedule changes it."""
        for group in self.optimizer.param_groups:
            group["last_lr"] = group["lr"]
        super().end_epoch()


class Finetune(Supervised):
    """One epoch on masked images, from where the phase before ended."""

    method: MaskTune
    selection = KEPT

    def __init__(self, method: MaskTune, name: str, before: str) -> None:
        lr, key = method.finetune_lr, "method.finetune_lr"
        super().__init__(name, method, 1, method.reduce, lr=lr, lr_key=key)
        self.before, self.first = before, before == "erm"

    def check(self, run: RunContext) -> None:
        """Images can be masked."""
        self.method.masking.check(run)

    def begin(self, run: RunContext) -> None:
        """The optimiser goes on; the masks of all of TRAIN are made."""
        method = self.method
        from_run = method.init if self.first else None
        before = from_run or run.kept(self.before)
        if method.finetune_lr is None and from_run is None:
            checkpoint.load_optimizer(self.optimizer, before / "state.pt")
            for group in self.optimizer.param_groups:
                group["lr"] = group.pop("last_lr", group["lr"])
        if method.masking.stored:
            last = weights.snapshot(method)
            if self.first:  # later masks are those of the network just fine-tuned
                checkpoint.load_trained(method, before / "model.safetensors")
            method.masking.make(method, run, self.name, None if self.first else self.before)
            method.load_state_dict(last)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """TRAIN, each image once, masked."""
        split = self.method.masking.masked(run, self.name)
        return {"train": run.stream(Split.TRAIN, role=self.name, dataset=split)}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """A step of ERM."""
        batch, method = batches["train"], self.method
        x = method.masking.faded(method.backbone, batch.x)
        return super().step({"train": replace(batch, x=x)})

    def end_epoch(self) -> None:
        """The rate stays, for what may go on from here."""
