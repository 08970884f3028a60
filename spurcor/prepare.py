"""Prepare a data set and preview it: python -m spurcor.prepare dataset=..."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from spurcor import cli
from spurcor.config.check import check
from spurcor.config.nodes import Node
from spurcor.config.schema import Paths

if TYPE_CHECKING:
    from rich.table import Table

    from spurcor.data.association import Contingency
    from spurcor.data.groups import GroupedDataset
    from spurcor.data.source import DataSource


@dataclass(frozen=True)
class PrepareConfig:
    """Options of `spurcor.prepare`."""

    dataset: Node
    paths: Paths


def main(cfg: DictConfig) -> int:
    """Find or download the data set, decode it, show its groups, and return 0."""
    config = check(cfg, PrepareConfig)
    name = HydraConfig.get().runtime.choices["dataset"]

    from spurcor.data.examples import draw_examples
    from spurcor.system.files import cannot_write
    from spurcor.system.terminal import Terminal, log_to_terminal

    log_to_terminal()
    terminal = Terminal()
    source: DataSource = config.dataset.build()
    splits = source.splits(config.paths.data)
    terminal.console.print(groups_table(splits))
    for part in shortcuts(source.candidates(config.paths.data) or _attribute(splits), splits):
        terminal.console.print(part, soft_wrap=isinstance(part, str), markup=False)
    path = config.paths.outputs / "previews" / f"{name}.png"
    try:
        draw_examples(splits["train"], path)
    except OSError as error:
        raise cannot_write(config.paths.outputs, error) from error
    terminal.say(f"examples of the groups of train: {path}")
    return 0


def groups_table(splits: Mapping[str, "GroupedDataset"]) -> "Table":
    """Return a table of group sizes and shares per split, and of the association of y and a.

    The last row is Cramér's V: 0 if y and a are independent, 1 if one determines the other; for two
    classes and two attributes it is the absolute correlation.
    """
    from rich.table import Column, Table

    spec = splits["train"].spec
    table = Table(Column("label" if spec.task == "multilabel" else "group", no_wrap=True))
    for name in splits:
        table.add_column(name, justify="right")
    columns = {}
    for name, split in splits.items():
        counts = split.y.sum(0) if spec.task == "multilabel" else split.group_counts
        columns[name] = [_with_share(count, len(split)) for count in counts.tolist()]
    for row, group in enumerate(spec.names):
        if any(cells[row] != "-" for cells in columns.values()):
            table.add_row(group, *(cells[row] for cells in columns.values()))
    table.add_section()
    table.add_row("all", *(f"{len(split):,}" for split in splits.values()))
    if spec.task == "multiclass" and len(spec.attributes) > 1:
        table.add_row("V of y, a", *(_association(split) for split in splits.values()))
    return table


def _with_share(count: int, total: int) -> str:
    if not count:
        return "-"
    share = 100 * count / total
    return f"{count:,} ({share:.0f}%)" if share >= 10 else f"{count:,} ({share:.1f}%)"


def _association(split: "GroupedDataset") -> str:
    from scipy.stats import contingency

    counts = split.group_counts.view(split.spec.num_classes, -1)
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    if min(counts.shape) < 2:
        return "-"
    return f"{contingency.association(counts.numpy(), method='cramer'):.3f}"


def _attribute(splits: Mapping[str, "GroupedDataset"]) -> "Mapping[str, Contingency]":
    """Return the classes in TRAIN against the attribute, if there is one."""
    from spurcor.data.association import Contingency

    train = splits["train"]
    if train.spec.task == "multilabel" or len(train.spec.attributes) < 2:
        return {}
    counts = train.group_counts.view(train.spec.num_classes, -1).numpy()
    return {"attribute": Contingency(train.spec.attributes, counts)}


def shortcuts(
    candidates: "Mapping[str, Contingency]", splits: Mapping[str, "GroupedDataset"]
) -> "list[Table | str]":
    """Return a table of the properties that go together with the class in TRAIN, and the verdicts.

    It has Cramér's V with a 95 % interval, the strongest first, and the pair that goes together
    most beyond chance.
    """
    from rich.table import Column, Table

    from spurcor.data.association import association, strongest

    numbers = (Column(header, justify="right") for header in ("V", "95 %"))
    table = Table("in train", *numbers, "strongest pair")
    found = {name: association(one.counts) for name, one in candidates.items()}
    told: list[Table | str] = []
    for name, v in sorted(found.items(), key=lambda item: -item[1].v):
        if v.v != v.v:  # NaN: TRAIN has a single class or value
            continue
        one = candidates[name]
        y, value = strongest(one.counts)
        row, column = one.counts[y], one.counts[:, value]
        within = row[value] / row.sum()
        others = (column.sum() - row[value]) / max(1, one.counts.sum() - row.sum())
        pair = f"{splits['train'].spec.classes[y]}, {one.values[value]}"
        table.add_row(name, f"{v.v:.2f}", f"{v.low:.2f} to {v.high:.2f}", pair)
        if v.suspicious:
            told.append(
                f"{name} looks like a shortcut: {one.values[value]} in {within:.0%} of"
                f" {splits['train'].spec.classes[y]}, in {others:.0%} of the other classes"
            )
    return [table, *told] if table.row_count else []


if __name__ == "__main__":
    sys.exit(cli.run(main, "prepare"))
