"""Group metrics against numbers worked out by hand."""

import json
import math

import pytest
import torch

from spurcor.data import groups
from spurcor.data.groups import GroupedDataset, GroupSpec, Split
from spurcor.data.splits import Splits
from spurcor.data.transforms import Normalize
from spurcor.training.metrics import (
    GroupMetrics,
    apply,
    evaluate,
    gaps,
    group_means,
    group_metrics,
    label_scores,
    none_if_undefined,
)

SPEC = GroupSpec(("land", "water"), ("land", "water"), aligned=(0, 1))
PLAIN = Normalize((0.0,), (1.0,))
KEYS = {
    "worst", "average", "adjusted", "balanced", "worst_class", "aligned", "conflicting",
}  # fmt: skip


def metrics(correct, count, spec=SPEC):
    return GroupMetrics(spec, torch.tensor(correct), torch.tensor(count))


def test_group_losses_and_gaps_by_hand():
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 0.5])
    means = group_means(losses, torch.tensor([0, 0, 1, 3, 3]), 4)
    assert means[[0, 1, 3]].tolist() == [1.5, 4.0, 4.25]
    assert math.isnan(float(means[2]))
    assert gaps(means, SPEC) == {"land": 2.5}  # L(land, water) - L(land, land)
    three = GroupSpec(("a", "b"), ("x", "y", "z"), aligned=(0, 2))
    found = gaps(torch.tensor([1.0, 2.0, 4.0, 3.0, 5.0, 1.0]).double(), three)
    assert found == {"a": 2.0, "b": 3.0}


def test_every_number_by_hand():
    m = metrics([9, 2, 1, 6], [10, 4, 5, 8])
    assert m.accuracy.tolist() == [0.9, 0.5, 0.2, 0.75]
    assert m.worst == 0.2
    assert m.average == pytest.approx(18 / 27)
    assert m.balanced == pytest.approx((0.9 + 0.5 + 0.2 + 0.75) / 4)
    assert m.aligned == pytest.approx(15 / 18)
    assert m.conflicting == pytest.approx(3 / 9)
    assert m.per_class.tolist() == pytest.approx([11 / 14, 7 / 13])
    assert m.adjusted(torch.tensor([70, 10, 5, 15])) == pytest.approx(
        0.7 * 0.9 + 0.1 * 0.5 + 0.05 * 0.2 + 0.15 * 0.75
    )


def test_waterbirds_average_is_weighted_by_training_counts():
    train, test = torch.tensor([3498, 184, 56, 1057]), [2255, 2255, 642, 642]
    m = metrics([2232, 1780, 450, 610], test)
    expected = (3498 * 2232 / 2255 + 184 * 1780 / 2255 + 56 * 450 / 642 + 1057 * 610 / 642) / 4795
    assert m.adjusted(train) == pytest.approx(expected, abs=1e-12)
    assert m.adjusted(train) == pytest.approx(0.969996, abs=1e-6)
    assert m.average == pytest.approx(5072 / 5794)


def test_counting_from_logits():
    logits = torch.tensor([[2.0, 1], [0, 1], [3, 1], [0, 5], [1, 0]])
    y, a = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    m = group_metrics(logits, y, SPEC.group(y, a), SPEC)
    assert m.correct.tolist() == [1, 0, 0, 1]
    assert m.count.tolist() == [2, 0, 0, 3]


def test_empty_groups_keep_their_place_and_count_nowhere():
    m = metrics([9, 0, 0, 6], [10, 0, 0, 8])
    assert math.isnan(m.accuracy[1])
    assert m.worst == 0.75
    assert m.balanced == pytest.approx((0.9 + 0.75) / 2)
    assert m.average == m.aligned == pytest.approx(15 / 18)
    assert math.isnan(m.conflicting)
    assert m.adjusted(torch.tensor([30, 40, 20, 10])) == pytest.approx(0.75 * 0.9 + 0.25 * 0.75)


def test_a_group_that_is_always_wrong_is_not_an_empty_one():
    m = metrics([0, 0, 1, 1], [3, 0, 1, 1])
    assert m.worst == 0
    assert m.balanced == pytest.approx(2 / 3)


def test_merging_adds_counts():
    parts = [metrics([1, 0, 2, 0], [1, 0, 2, 3]), metrics([0, 4, 1, 1], [2, 5, 1, 1])]
    m = parts[0] + parts[1]
    assert (m.correct.tolist(), m.count.tolist()) == ([1, 4, 3, 1], [3, 5, 3, 4])
    assert m.worst == 0.25
    assert m.spec is SPEC


def test_unaligned_data_have_no_aligned_and_conflicting_accuracy():
    spec = GroupSpec(("a", "b"), ("x", "y"))
    summary = metrics([1, 1, 1, 1], [2, 2, 2, 2], spec).summary(torch.ones(4))
    assert summary["aligned"] is None
    assert summary["conflicting"] is None
    assert summary["worst"] == 0.5


def test_summary_is_json_with_null_where_undefined():
    m = metrics([9, 0, 0, 6], [10, 0, 0, 8])
    summary = m.summary(torch.tensor([1, 1, 1, 1]))
    assert set(summary) == {*KEYS, "classes", "groups"}
    assert summary["classes"] == {"land": 0.9, "water": 0.75}
    assert summary["conflicting"] is None
    assert summary["groups"]["land/land"] == {"accuracy": 0.9, "count": 10}
    assert summary["groups"]["land/water"] == {"accuracy": None, "count": 0}
    assert list(summary["groups"]) == SPEC.names
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_nothing_is_defined_without_samples():
    summary = metrics([0] * 4, [0] * 4).summary(torch.tensor([5, 5, 5, 5]))
    assert all(summary[key] is None for key in KEYS)


def test_adjusted_is_undefined_where_training_saw_no_group_of_the_split():
    m = metrics([0, 3, 0, 0], [0, 4, 0, 0])
    assert m.summary(torch.tensor([9, 0, 0, 9]))["adjusted"] is None


def test_precision_recall_and_f1_of_each_label_by_hand():
    logits = torch.tensor([[1.0, -1.0, 2.0], [0.5, 3.0, -1.0], [-2.0, 1.0, -1.0], [4.0, 1.0, -3.0]])
    y = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]])
    spec = GroupSpec(("bald", "young", "hat"), (), task="multilabel")
    found = label_scores(logits, y, spec)
    assert found["bald"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert found["young"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8})
    assert found["hat"] == {"precision": 0.0, "recall": None, "f1": 0.0}
    one = GroupSpec(("bald",), (), task="multilabel")  # which is not the class of those without it
    assert label_scores(logits[:, :1], y[:, :1], one) == {"bald": found["bald"]}


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0.0), (math.nan, None), (math.inf, None), (-math.inf, None)]
)
def test_none_if_undefined(value, expected):
    assert none_if_undefined(value) == expected


def dataset(values, y, a):
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)
    return GroupedDataset(SPEC, images, torch.tensor(y), torch.tensor(a), torch.arange(len(y)))


def test_apply_keeps_the_order_over_batches(monkeypatch):
    data = dataset(list(range(10)), [0] * 10, [0] * 10)
    sizes = []

    def function(x):
        assert not torch.is_grad_enabled()
        sizes.append(len(x))
        return x.flatten() * 255

    monkeypatch.setattr(groups, "EVALUATION_BATCH", 4)
    torch.testing.assert_close(apply(function, data, PLAIN), torch.arange(10.0))
    assert sizes == [4, 4, 2]


def test_a_processor_evaluates_few_large_images_at_a_time(monkeypatch):
    data = dataset([0] * 10, [0] * 10, [0] * 10)

    def doubled(x):
        return PLAIN(x).expand(-1, 3, -1, 2)

    for values, expected in ((18, [3, 3, 3, 1]), (1, [1] * 10), (1000, [10])):
        monkeypatch.setattr(groups, "CPU_VALUES", values)
        assert [len(part) for part in groups.evaluation_chunks(data, doubled)] == expected
    empty = data.subset(torch.tensor([], dtype=torch.int64))
    assert [len(part) for part in groups.evaluation_chunks(empty, doubled)] == [0]


def test_evaluate_reports_every_split_but_those_that_train():
    data = {
        Split.TRAIN: dataset([0] * 4, [0, 0, 0, 1], [0, 0, 1, 1]),
        Split.TARGET: dataset([0], [0], [0]),
        Split.VAL: dataset([0, 255, 0, 255], [0, 1, 1, 1], [0, 0, 1, 1]),
        "opposite": dataset([255, 255], [0, 1], [1, 0]),
    }

    def predict(x):  # class 1 where the pixel is bright, with odds of 3 to 1
        f = (2 * x.flatten() - 1) * math.log(3)
        return torch.stack([-f / 2, f / 2], dim=1)

    entries = evaluate(predict, Splits(data, PLAIN, torch.device("cpu")))
    assert {key.partition("/")[0] for key in entries} == {"val", "opposite"}
    assert entries["val/loss"] == pytest.approx((-3 * math.log(0.75) - math.log(0.25)) / 4)
    assert entries["val/average"] == 0.75
    assert entries["val/worst"] == 0.5
    # val holds groups 0, 2 and 3; TRAIN's counts are 2, 1, 0, 1
    assert entries["val/adjusted"] == pytest.approx((2 * 1 + 1 * 0.5) / 3)
    assert entries["val/group/water/water"] == 0.5
    assert "val/group/land/water" not in entries
    assert entries["opposite/aligned"] is None
    assert entries["opposite/conflicting"] == 0.5
    assert entries["opposite/group/land/water"] == 0
    assert entries["opposite/group/water/land"] == 1
