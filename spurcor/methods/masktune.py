"""MaskTune (Asgari Taghanaki et al., NeurIPS 2022): hide what ERM looks at, and train on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from spurcor.data.groups import EVALUATION_BATCH, Batch, DataInfo, GroupedDataset, Split, members_by
from spurcor.data.streams import Stream
from spurcor.errors import UserError
from spurcor.models import weights
from spurcor.models.backbone import Backbone
from spurcor.presentation.pictures import draw_panels
from spurcor.saliency.maps import Saliency, heat_maps
from spurcor.saliency.masks import Masks, holes, masked, masked_view, outliers
from spurcor.seeding import derive_seed
from spurcor.training import checkpoint
from spurcor.training.method import Method, Phase, RunContext, Supervised

KEPT = "val/average"  # what the weights are chosen by that the masks are made with
MOST_GROUPS, SAMPLES = 16, 3  # in the picture
ENLARGED = 1 << 24  # numbers of a map's channels that are enlarged at once


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
        mask: Literal["saliency", "attention", "random", "none"] = "saliency",
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
        if info.shape[1:] == (1, 1):
            raise UserError(
                "features=frozen leaves no pixels for method=masktune to hide; say features=none"
            )
        if iterations < 1:
            raise ValueError(f"iterations={iterations} must be at least 1")
        if not (0 <= deviations < math.inf and 0 <= (finetune_lr or 0) < math.inf):
            raise ValueError(
                f"deviations={deviations} and finetune_lr={finetune_lr} must be at least 0, and"
                " finite"
            )
        if not 0 < quantile < 1:
            raise ValueError(f"quantile={quantile} must be between 0 and 1")
        self.epochs, self.mask, self.saliency = epochs, mask, saliency
        self.layer = backbone.spatial(layer)
        self.deviations, self.quantile, self.iterations = deviations, quantile, iterations
        self.accumulative, self.finetune_lr = accumulative, finetune_lr
        self.height, self.width = info.shape[1:]
        self.init = None if init is None else Path(init)

    def phases(self) -> Sequence[Phase]:
        """`erm`, then `finetune`, `finetune2`, ..."""
        erm = Supervised("erm", self, self.epochs, self.reduce, selection=KEPT)
        names = ["finetune", *(f"finetune{i + 2}" for i in range(self.iterations - 1))]
        before = ["erm", *names]
        finetune = [Finetune(self, *pair) for pair in zip(names, before, strict=False)]
        return [erm, *finetune] if self.init is None else finetune

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """L = 1/B sum_i l_i."""
        return losses.mean()

    @torch.no_grad()
    def attenuated(self, x: Tensor) -> Tensor:
        """x (1 - m / 2): m (B, 1, H, W) is the share of channels that attend to a pixel.

        A channel does where the map, scaled to [0, 1] over the batch and enlarged, is above the
        quantile of what was scaled. masktune_models compares with the quantile before scaling,
        which is on another scale.
        """
        training = self.training
        self.eval()  # the extra pass must not move batch norm
        output, _ = self.backbone.through(x, self.layer)
        self.train(training)
        A = self.backbone.maps(self.layer, output.float(), *x.shape[2:])  # noqa: N806
        A = (A - A.min()) / (A.max() - A.min()).clamp(min=torch.finfo(A.dtype).tiny)  # noqa: N806
        rank = round(self.quantile * (A.numel() - 1)) + 1
        threshold = A.flatten().kthvalue(rank).values
        above = torch.zeros_like(x[:, :1])
        for some in torch.split(A, max(1, ENLARGED // above.numel()), dim=1):
            enlarged = F.interpolate(some, x.shape[2:], mode="bilinear", align_corners=False)
            above += (enlarged > threshold).sum(1, keepdim=True)
        return x * (1 - above / A.shape[1] / 2)


class Finetune(Phase):
    """One epoch on masked images from where the phase before ended."""

    epochs, selection = 1, KEPT

    def __init__(self, method: MaskTune, name: str, before: str) -> None:
        """`before`: the phase that it goes on from."""
        self.method, self.name, self.before = method, name, before
        self.masks = method.mask in ("saliency", "random")
        rate = method.finetune_lr
        self.update = Supervised(name, method, self.epochs, method.reduce, lr=rate)

    def check(self, run: RunContext) -> None:
        """Where masks lie on the training images must be known."""
        train = run.splits[Split.TRAIN]
        if self.masks:
            run.splits.transform.window(train.train_images.sizes(train.train_rows))

    def setup(self, run: RunContext) -> None:
        """The optimiser of ERM; what it has gathered comes in `begin`."""
        self.update.setup(run)

    def begin(self, run: RunContext) -> None:
        """The optimiser goes on; the masks of all of TRAIN are made."""
        method = self.method
        from_run = method.init is not None and self.before == "erm"
        before = method.init if from_run else run.kept(self.before)
        assert before is not None
        if method.finetune_lr is None and not from_run:
            path = before / "state.pt"
            state = checkpoint.load(path, ("optimizer",))
            with checkpoint.of_this_version(path):
                self.update.optimizer.load_state_dict(state["optimizer"])
        if not self.masks:
            return
        last = weights.snapshot(method)
        if self.before == "erm":  # later masks are those of the network just fine-tuned
            checkpoint.load_trained(method, before / "model.safetensors")
        self._mask(run)
        method.load_state_dict(last)

    def _mask(self, run: RunContext) -> None:
        """Masks from un-augmented images, batch by batch."""
        method, split, transform = self.method, run.splits[Split.TRAIN], run.splits.transform
        earlier = None
        if method.accumulative and self.before != "erm":
            earlier = self._masks(run, self.before)
            split = masked_view(split, earlier)
        masks = Masks.empty(len(split), method.height, method.width)
        generator = torch.Generator().manual_seed(derive_seed("masks", run.seed, self.name))
        for indices in torch.split(torch.arange(len(split)), run.batch_size or EVALUATION_BATCH):
            heat = self._heat(transform(split.fetch(indices).x))
            found = outliers(heat, method.deviations)
            if method.mask == "random":
                found = holes(found.sum((1, 2)), method.height, method.width, generator)
            masks.put(indices, found)
        if earlier is not None:
            masks.add(earlier)
        masks.save(run.directory / "masks" / f"{self.name}.npy")
        self._draw(run, split, masks)

    def _heat(self, x: Tensor) -> Tensor:
        return heat_maps(self.method, x, self.method.layer, self.method.saliency)

    def _draw(self, run: RunContext, split: GroupedDataset, masks: Masks) -> None:
        """Of each group, the first images, their heat, and what is left of them."""
        rows = {}
        for members in members_by(split.g.cpu())[:MOST_GROUPS]:
            x, hidden = (s.fetch(members[:SAMPLES]).x for s in (split, masked_view(split, masks)))
            panels = zip(x / 255, self._heat(run.splits.transform(x)), hidden / 255, strict=True)
            labels = split.spec.task == "multilabel"  # which make no groups
            name = str(Split.TRAIN) if labels else split.spec.names[int(split.g[members[0]])]
            rows[name] = [panel.cpu() for sample in panels for panel in sample]
        file = self.name.replace("finetune", "masks")
        title = f"{self.name}: image, {self.method.saliency}, masked"
        draw_panels(rows, title, run.directory / "plots" / f"{file}.png")

    def _masks(self, run: RunContext, name: str) -> Masks:
        path = run.directory / "masks" / f"{name}.npy"
        return Masks.load(path, self.method.height, self.method.width)

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """TRAIN, each image once, its pixels masked where they are stored."""
        split = run.splits[Split.TRAIN]
        if self.masks:
            split = masked(split, self._masks(run, self.name), run.splits.transform)
        return {"train": run.stream(Split.TRAIN, role=self.name, dataset=split)}

    def step(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """A step of ERM."""
        batch = batches["train"]
        if self.method.mask == "attention":
            batch = replace(batch, x=self.method.attenuated(batch.x))
        return self.update.step({"train": batch})

    def end_epoch(self) -> None:
        """The rate stays."""
        self.update.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and schedule; the masks are in a file of their own."""
        return self.update.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Optimiser and schedule."""
        self.update.load_state_dict(state)
