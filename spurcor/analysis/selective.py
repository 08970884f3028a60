"""Selective classification: answer where confident, calibrated on VAL, and abstain elsewhere.

Rules: the largest softmax of one network; the product of two networks (MaskTune, Asgari Taghanaki
et al., NeurIPS 2022); the agreement of two (masktune_models), also for multi-label data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spurcor.analysis.contract import Analysis, FinishedRun
from spurcor.data.groups import GroupSpec, Split
from spurcor.data.splits import Splits
from spurcor.errors import Damaged, UserError
from spurcor.presentation.render import markdown, show
from spurcor.presentation.tables import Table
from spurcor.system.files import write_text
from spurcor.training.method import Method
from spurcor.training.metrics import none_if_undefined
from spurcor.training.predictions import kept_phases, read_predictions

COVERAGES = (0.8, 0.85, 0.9, 0.95, 1.0)
POINTS = 300  # per curve in the plot
Report = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """Predicted classes (N,) and their confidence (N,), float64."""

    predicted: Tensor
    confidence: Tensor


def single(logits: Tensor) -> Answers:
    """Return answers by the largest softmax of logits (N, K), which is the confidence."""
    confidence, predicted = logits.double().softmax(1).max(1)
    return Answers(predicted, confidence)


def product(first: Tensor, second: Tensor) -> Answers:
    """Return answers by q = softmax(p1 p2), p1 and p2 the softmax of two networks' logits (N, K).

    The confidence is the largest q.
    """
    p1, p2 = (logits.double().softmax(1) for logits in (first, second))
    return single(p1 * p2)


def calibrate(confidence: Tensor, coverages: Sequence[float]) -> list[float]:
    """Return the confidence threshold for each nominal coverage, from VAL confidences (N,).

    For coverage c, the confidence at index round(c N) in descending order; at 1 the lowest of VAL,
    below which there may still be samples of TEST.
    """
    falling = confidence.sort(descending=True).values
    places = [min(round(c * len(falling)), len(falling) - 1) for c in coverages]
    return [float(falling[place]) for place in places]


def risk_coverage(confidence: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return coverages in ascending order, the risk at each, and the area under the curve.

    The risk is the share of `wrong` among the accepted; samples of equal confidence are accepted
    together.
    """
    order = confidence.argsort(descending=True)
    ranked, errors = confidence[order], wrong[order].double().cumsum(0)
    ends = torch.cat([ranked[1:] != ranked[:-1], torch.tensor([True])]).nonzero().squeeze(1)
    accepted = (ends + 1).double()
    risk = errors[ends] / accepted
    sizes = accepted.diff(prepend=torch.zeros(1, dtype=torch.float64))
    return accepted / len(confidence), risk, float((risk * sizes).sum() / len(confidence))


def answered(accepted: Tensor, right: Tensor, y: Tensor, g: Tensor, spec: GroupSpec) -> Report:
    """Return coverage and error for a mask of accepted samples (N,), also per group and per class.

    `worst` is the lowest accuracy on a group's accepted samples, `worst_coverage` the lowest
    coverage of a group, which reveals abstaining from a whole group.
    """
    groups = _by(g, spec.names, accepted, right)
    known = [group["accuracy"] for group in groups.values() if group["accuracy"] is not None]
    return {
        "coverage": float(accepted.double().mean()),
        "error": none_if_undefined(1 - float(right[accepted].double().mean())),
        "worst": min(known, default=None),
        "worst_coverage": min(group["coverage"] for group in groups.values()),
        "classes": _by(y, spec.classes, accepted, right),
        "groups": groups,
    }


def _by(labels: Tensor, names: Sequence[str], accepted: Tensor, right: Tensor) -> Report:
    size = len(names)
    counts, answers, hits = (
        torch.bincount(labels[chosen], minlength=size).tolist()
        for chosen in (torch.ones_like(accepted), accepted, accepted & right)
    )
    return {
        name: {"coverage": a / n, "accuracy": h / a if a else None, "count": n}
        for name, n, a, h in zip(names, counts, answers, hits, strict=True)
        if n
    }


# --- stored predictions ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Stored logits (N, K), classes (N,) or labels (N, K), and groups (N,), by split."""

    name: str
    spec: GroupSpec
    logits: Mapping[str, Tensor]
    y: Mapping[str, Tensor]
    g: Mapping[str, Tensor]

    @classmethod
    def load(cls, name: str, spec: GroupSpec, directory: Path) -> "Stored":
        """Load the predictions of a run, or of a phase that it kept, from a folder."""
        found = read_predictions(directory)
        logits, y, a = (
            {split: torch.from_numpy(columns[column]) for split, columns in found.items()}
            for column in ("logits", "y", "a")
        )
        g = {split: spec.group(y[split], a[split]) for split in y}
        one = cls(name, spec, logits, y, g)
        one._refuse_foreign(directory / "predictions.npz", a)
        return one

    def _refuse_foreign(self, path: Path, a: Mapping[str, Tensor]) -> None:
        """Raise Damaged unless there are predictions for VAL and TEST that fit the spec."""
        classes, attributes = self.spec.num_classes, len(self.spec.attributes)
        for split in (Split.VAL, Split.TEST, *self.y):
            if split not in self.y or not len(self.y[split]):
                raise Damaged(path, f"has no predictions for {split}")
            y = self.y[split]
            known = {"multilabel": (2, None), "multiclass": (classes, attributes)}[self.spec.task]
            within = all(
                count is None or (int(of.min()) >= 0 and int(of.max()) < count)
                for of, count in zip((y, a[split]), known, strict=True)
            )
            if self.logits[split].shape[1] != classes or not within:
                raise Damaged(path, f"is damaged (the classes of {split} differ from result.json)")


# --- the analysis ---------------------------------------------------------------------------------


class Selective(Analysis):
    """Selective classification by one or two networks at `coverages` of VAL, and by agreement.

    Agreement: both predict the same class, and the second's largest softmax is at least
    `confidence`, multiplied by `leniency` for the `difficult` classes. For multi-label data, all
    labels must agree and the second's largest probability must exceed `label_confidence`.
    """

    revision = 2  # changed the threshold at a coverage of 1

    def __init__(
        self,
        coverages: tuple[float, ...] = COVERAGES,
        confidence: float = 0.8,
        difficult: tuple[str, ...] = (),
        leniency: float = 0.7,
        label_confidence: float = 0.6,
    ) -> None:
        if not coverages or not all(0 < c <= 1 for c in coverages):
            raise ValueError(f"coverages={list(coverages)} must be above 0 and at most 1")
        self.coverages = tuple(sorted(coverages))
        self.confidence, self.difficult, self.leniency = confidence, difficult, leniency
        self.label_confidence = label_confidence

    def check(self, method: Method, splits: Splits) -> None:
        """Check that VAL can calibrate, predictions will exist, and the class names are known."""
        for name in (Split.VAL, Split.TEST):
            splits[name]
        phases = method.phases()
        if not phases:
            raise ValueError("this method trains nothing, so there are no predictions to accept")
        if Split.VAL in method.consumed:
            raise ValueError("the network is trained on val, so val cannot calibrate it")
        spec = splits.spec
        two = method.init is not None or any(phase.selection for phase in phases[:-1])
        if spec.task == "multilabel" and not two:
            raise ValueError(
                "multi-label data needs two networks that can agree, but this method keeps one;"
                " compare two runs with python -m spurcor.selective runs=[<run>,<run>]"
            )
        self._check_names(spec)

    def _check_names(self, spec: GroupSpec) -> None:
        if unknown := [name for name in self.difficult if name not in spec.classes]:
            raise UserError(
                f"difficult={list(self.difficult)}: no class is called {unknown[0]}; choose from"
                f" {', '.join(spec.classes)}"
            )

    def finish(self, ended: FinishedRun) -> Mapping[str, Any]:
        """Return the report by rule and split; write table.md and a risk-coverage plot.

        With two networks, the first is the run started from or the first phase kept.
        """
        spec, kept = ended.splits.spec, kept_phases(ended.directory)
        before = list(kept)[:1]
        init = ended.config.init
        if init is not None and not any("origin" in kept[name] for name in before):
            raise UserError(
                f"{ended.directory} was made by a version that did not keep the network it started"
                f" from; use python -m spurcor.selective runs=[{init},{ended.directory}]"
            )
        networks = [Stored.load(name, spec, ended.directory / "phases" / name) for name in before]
        networks.append(Stored.load(ended.config.choices["method"], spec, ended.directory))
        return self.compare(networks, ended.folder)

    def compare(self, networks: Sequence[Stored], folder: Path) -> Report:
        """Return the report of one or two networks on the same splits; write files to `folder`."""
        first, second = networks[0], networks[-1]  # identical for a single network
        spec = second.spec
        self._check_names(spec)
        splits = [split for split in second.logits if split != Split.VAL]
        if spec.task == "multilabel":
            rules = {"agreement": {split: self._labels(first, second, split) for split in splits}}
            write_text(folder / "table.md", _table_of_labels(rules["agreement"]))
            return {"rules": rules, "metrics": _metrics(rules)}
        calibrated = {
            network.name: {s: single(logits) for s, logits in network.logits.items()}
            for network in networks
        }
        if len(networks) == 2:
            pairs = {s: (first.logits[s], logits) for s, logits in second.logits.items()}
            calibrated["product"] = {s: product(*pair) for s, pair in pairs.items()}
        rules = {
            rule: {split: self._at_coverages(answers, second, split) for split in splits}
            for rule, answers in calibrated.items()
        }
        if len(networks) == 2:
            rules["agreement"] = {split: self._agreement(first, second, split) for split in splits}
        write_text(folder / "table.md", _table(rules))
        _draw(folder / "plots" / "risk_coverage.png", calibrated, second.y)
        return {"rules": rules, "metrics": _metrics(rules)}

    def _at_coverages(self, answers: Mapping[str, Answers], of: Stored, split: str) -> Report:
        thresholds = calibrate(answers[Split.VAL].confidence, self.coverages)
        mine, y, g = answers[split], of.y[split], of.g[split]
        right = mine.predicted == y
        _, _, area = risk_coverage(mine.confidence, ~right)
        rows = [
            {"nominal": c, "threshold": t} | answered(mine.confidence >= t, right, y, g, of.spec)
            for c, t in zip(self.coverages, thresholds, strict=True)
        ]
        return {"aurc": area, "coverages": rows}

    def _agreement(self, first: Stored, second: Stored, split: str) -> Report:
        """Report the agreement rule; as published, rejection is among samples where both agree."""
        mine, y = single(second.logits[split]), second.y[split]
        agreed = mine.predicted == single(first.logits[split]).predicted
        difficult = torch.tensor([name in self.difficult for name in second.spec.classes])
        threshold = torch.where(difficult, self.leniency * self.confidence, self.confidence)
        accepted = agreed & (mine.confidence >= threshold.double()[mine.predicted])
        rejection = 1 - float(accepted.sum() / agreed.sum())
        return {
            "agreement": float(agreed.double().mean()),
            "rejection": none_if_undefined(rejection),
            **answered(accepted, mine.predicted == y, y, second.g[split], second.spec),
        }

    def _labels(self, first: Stored, second: Stored, split: str) -> Report:
        """Report the agreement rule for multi-label data.

        Accuracy is the mean over accepted samples and labels; rejection is the share of all
        samples. masktune_models instead divides correct labels by samples and counts rejections per
        batch.
        """
        logits, y = second.logits[split], second.y[split].bool()
        agreed = ((logits > 0) == (first.logits[split] > 0)).all(1)
        accepted = agreed & (logits.double().sigmoid().max(1).values > self.label_confidence)
        hits = ((logits > 0) == y)[accepted].double()
        labels = zip(second.spec.classes, hits.mean(0).tolist(), strict=True)
        coverage = float(accepted.double().mean())
        return {
            "agreement": float(agreed.double().mean()),
            "coverage": coverage,
            "rejection": 1 - coverage,
            "accuracy": none_if_undefined(float(hits.mean())),
            "exact": none_if_undefined(float(hits.prod(1).mean())),
            "labels": {name: none_if_undefined(accuracy) for name, accuracy in labels},
        }


# --- output ---------------------------------------------------------------------------------------


def _metrics(rules: Mapping[str, Mapping[str, Report]]) -> dict[str, float]:
    """Return the numbers shown by trackers and tables, as `<rule>/<quantity>/<split>`."""
    found: dict[str, float] = {}
    for rule, splits in rules.items():
        for split, report in splits.items():
            values = {key: value for key, value in report.items() if isinstance(value, float)}
            for row in report.get("coverages", ()):
                at = f"at_{100 * row['nominal']:g}"
                values |= {f"{key}_{at}": row[key] for key in ("coverage", "error", "worst")}
            found |= {
                f"{rule}/{key}/{split}": value for key, value in values.items() if value is not None
            }
    return found


def _table(rules: Mapping[str, Mapping[str, Report]]) -> str:
    """Return a Markdown table of the rules' results on TEST, in per cent."""
    records = []
    for rule, splits in rules.items():
        for row in splits[Split.TEST].get("coverages", [splits[Split.TEST]]):
            first = {"rule": rule, "nominal": _percent(row.get("nominal"))}
            keys = ("coverage", "error", "worst", "worst_coverage")
            shares = {key.replace("_", " "): _percent(row[key]) for key in keys}
            records.append({**first, "threshold": row.get("threshold"), **shares})
    areas = [(rule, splits[Split.TEST].get("aurc")) for rule, splits in rules.items()]
    notes = [f"{rule}: AURC {area:.4f}" for rule, area in areas if area is not None]
    if "agreement" in rules:
        both = rules["agreement"][Split.TEST]
        agreed, rejected = (show(_percent(both[key])) for key in ("agreement", "rejection"))
        notes.append(
            f"agreement: the networks agree on {agreed} %, of which {rejected} % are rejected"
        )
    return "\n".join(
        [markdown(Table("selective", "", records)), "", *(f"- {n}" for n in notes), ""]
    )


def _table_of_labels(splits: Mapping[str, Report]) -> str:
    """Return a Markdown table of the agreement on multi-label data, in per cent."""
    keys = ("agreement", "coverage", "rejection", "accuracy", "exact")
    records = [
        {"split": split, **{key: _percent(of[key]) for key in keys}} for split, of in splits.items()
    ]
    return markdown(Table("selective", "", records)) + "\n"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _draw(path: Path, rules: Mapping[str, Mapping[str, Answers]], y: Mapping[str, Tensor]) -> None:
    """Draw error over coverage on TEST, a line per rule."""
    from spurcor.presentation.drawing import Drawing, Panel, Series
    from spurcor.presentation.plots import write

    series = []
    for style, (rule, splits) in enumerate(rules.items()):
        mine = splits[Split.TEST]
        coverage, risk, _ = risk_coverage(mine.confidence, mine.predicted != y[Split.TEST])
        shown = torch.linspace(0, len(risk) - 1, min(POINTS, len(risk))).long()
        x, error = ((100 * values[shown]).tolist() for values in (coverage, risk))
        series.append(Series(rule, style, x, error))
    drawing = Drawing(
        "risk_coverage", "", "test coverage (%)", "error on answered samples (%)",
        [Panel("", series)],
    )  # fmt: skip
    write(path, drawing)
