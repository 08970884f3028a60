"""MaskTune (Asgari Taghanaki et al., NeurIPS 2022): mask what ERM looks at, then fine-tune."""

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
from spurcor.saliency.masking import Mask, Masking
from spurcor.training import checkpoint
from spurcor.training.method import Method, Phase, RunContext, Supervised

KEPT = "val/average"  # criterion for the weights that make the masks


class MaskTune(Method):
    """ERM, then exactly one epoch on TRAIN without the pixels that ERM found most important.

    `mask`: `saliency` blackens pixels where the heat of `layer` (default: the deepest spatial
    layer) exceeds mean + `deviations` std of the image's positive heat; `attention`
    (masktune_models) dims a pixel by the share of channels of the layer that exceed the layer's
    `quantile` there; `random` blackens a hole of the area of the saliency mask; `none` is just one
    more epoch. `iterations` repeats masking and fine-tuning; `accumulative` keeps earlier masks.
    Fine-tuning continues with ERM's last learning rate and momentum, or starts with `finetune_lr`
    and no momentum. `init`: a finished run that replaces ERM; its momentum is unknown, and the
    learning rate is `finetune_lr` or the optimiser's.
    """

    additive = True

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
        info.require_pixels("method=masktune")
        require_at_least(1, iterations=iterations)
        require_at_least(0, deviations=deviations, finetune_lr=finetune_lr or 0.0)
        require_share(quantile=quantile)
        self.epochs, self.iterations, self.finetune_lr = epochs, iterations, finetune_lr
        layer, size = backbone.spatial(layer), info.shape[1:]
        self.masking = Masking(mask, layer, saliency, deviations, quantile, accumulative, size)
        self.init = None if init is None else Path(init)

    def phases(self) -> Sequence[Phase]:
        """Return `erm` (unless `init` replaces it), then `finetune`, `finetune2`, ..."""
        names = ["erm", "finetune", *(f"finetune{i + 2}" for i in range(self.iterations - 1))]
        erm = Erm("erm", self, self.epochs, self.reduce)
        finetune = [Finetune(self, name, before) for before, name in itertools.pairwise(names)]
        return [erm, *finetune] if self.init is None else finetune

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return L = 1/B sum_i l_i."""
        return losses.mean()


class Erm(Supervised):
    """ERM, which keeps its last learning rate and best weights for fine-tuning."""

    selection = KEPT

    def end_epoch(self) -> None:
        """Note this epoch's learning rate before the schedule changes it; it may be the last."""
        for group in self.optimizer.param_groups:
            group["last_lr"] = group["lr"]
        super().end_epoch()


class Finetune(Supervised):
    """One epoch on masked images, starting where the previous phase ended."""

    method: MaskTune
    selection = KEPT

    def __init__(self, method: MaskTune, name: str, before: str) -> None:
        lr, key = method.finetune_lr, "method.finetune_lr"
        super().__init__(name, method, 1, method.reduce, lr=lr, lr_key=key)
        self.before, self.first = before, before == "erm"

    def check(self, run: RunContext) -> None:
        """Check that the images can be masked."""
        self.method.masking.check(run)

    def begin(self, run: RunContext) -> None:
        """Restore the optimiser of the previous phase, and make the masks for all of TRAIN."""
        method = self.method
        from_run = method.init if self.first else None
        before = from_run or run.kept(self.before)
        if method.finetune_lr is None and from_run is None:
            checkpoint.load_optimizer(self.optimizer, before / "state.pt")
            for group in self.optimizer.param_groups:
                group["lr"] = group.pop("last_lr", group["lr"])
        if method.masking.stored:
            last = weights.snapshot(method)
            if self.first:  # later masks use the network just fine-tuned
                checkpoint.load_trained(method, before / "model.safetensors")
            method.masking.make(method, run, self.name, None if self.first else self.before)
            method.load_state_dict(last)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """Return the stream of TRAIN, with each masked image once."""
        split = self.method.masking.masked(run, self.name)
        return {"train": run.stream(Split.TRAIN, role=self.name, dataset=split)}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Make a step of ERM, after dimming the images for `mask=attention`."""
        batch, method = batches["train"], self.method
        x = method.masking.faded(method.backbone, batch.x)
        return super().step({"train": replace(batch, x=x)})

    def end_epoch(self) -> None:
        """Keep the learning rate, which a later fine-tuning continues with."""
