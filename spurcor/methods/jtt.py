"""Just Train Twice (Liu et al., ICML 2021): repeat what a first network got wrong."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from spurcor.config.ranges import require_at_least
from spurcor.data.groups import Batch, DataInfo, Split
from spurcor.data.streams import Stream
from spurcor.errors import UserError
from spurcor.models.backbone import Backbone
from spurcor.training.method import Method, Phase, RunContext, Supervised

RIGHT, WRONG = 0, 1  # attribute values of groups=errors


class Jtt(Method):
    """ERM on TRAIN and `upweight` copies of its mistakes E, from fresh weights.

    An epoch has N + lambda |E| samples, so that a mistake occurs lambda + 1 times in it, as in the
    authors' code; lambda = -1 stands for int((N - |E|) / |E|) - 1 copies, so that E makes up about
    half of the epoch. E are the mistakes that groups=errors finds.
    """

    additive = True

    def __init__(self, backbone: Backbone, info: DataInfo, epochs: int, upweight: int = 50) -> None:
        super().__init__(backbone, info)
        if info.spec.attributes != ("right", "wrong"):
            raise UserError("method=jtt repeats mistakes; choose groups=errors")
        require_at_least(-1, upweight=upweight)
        self.epochs, self.upweight = epochs, upweight

    def phases(self) -> Sequence[Phase]:
        """Return the single phase `jtt`."""
        return [Repeated("jtt", self, self.epochs, self.reduce)]

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return L = 1/B sum_i l_i."""
        return losses.mean()

    def repeats(self, mistake: Tensor) -> Tensor:
        """Return how often each sample occurs in an epoch, from whether it is a mistake (N,)."""
        count = int(mistake.sum())
        copies = self.upweight
        if copies == -1:
            copies = max(0, int((len(mistake) - count) / max(1, count)) - 1)
        return 1 + copies * mistake.long()


class Repeated(Supervised):
    """Supervised training on TRAIN with its mistakes repeated."""

    method: Jtt

    def streams(self, run: RunContext) -> Mapping[str, Stream]:
        """See `Phase`."""
        a = run.splits.trained(Split.TRAIN).a.cpu()
        return {"train": run.stream(Split.TRAIN, repeats=self.method.repeats(a == WRONG))}
