"""What methods of several phases have in common, with the one that docs/extending.md has."""

import re
import sys
import types

import pytest
import torch
from conftest import REPO
from test_contracts import resumes_exactly
from training import SMALL, read, rows_of, trainer_of

from spurcor.data.groups import DataInfo, GroupedDataset, GroupSpec, Split
from spurcor.data.streams import Stream
from spurcor.data.transforms import Normalize
from spurcor.errors import RunError
from spurcor.runs import build
from spurcor.training.method import Supervised
from spurcor.training.multiphase import keep_table, logits_of, restart

SHORT = (*SMALL, "train.batch_size=200", "method.epochs=2")
PLAIN = Normalize((0.0,), (1.0,))


@pytest.fixture
def twice(monkeypatch):
    """The page's method, as if its file were there: overrides that choose it."""
    page = (REPO / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"`spurcor/methods/twice\.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert code.count("\n") <= 80
    module = types.ModuleType("spurcor.methods.twice")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "twice.py", "exec"), vars(module))
    return ("method._target_=spurcor.methods.twice.Twice", "~method.sampling", "+method.up=5")


def fitted(cfg, folder):
    folder.mkdir()
    trainer, method = trainer_of(cfg, folder)
    trainer.fit(method)
    return trainer, method


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_pages_method_resumes_exactly(twice, tmp_path):
    resumes_exactly(read(*SHORT, *twice, "train.checkpoint_seconds=0"), tmp_path)


def test_its_second_phase_without_repeats_is_erm_from_the_same_weights(twice, tmp_path):
    alone = fitted(read(*SHORT), tmp_path / "erm")[1].state_dict()
    trainer, trained = fitted(read(*SHORT, *twice[:2], "+method.up=1"), tmp_path / "twice")
    assert same(alone, trained.state_dict())
    rows = rows_of(trainer.directory)
    wrong = trained.errors.sum().item()
    assert 0 < wrong < len(trained.errors) == 797
    assert [row.get("train/errors") for row in rows] == [None, wrong, None]
    more = fitted(read(*SHORT, *twice), tmp_path / "more")[1]
    assert more.errors.sum() == wrong
    assert not same(alone, more.state_dict())


def test_constants_are_in_the_first_evaluation_of_a_phase(twice, tmp_path):
    options = ("method.epochs=5", "train.eval_every=2", "analysis=jacobian_norm")
    trainer, _ = fitted(read(*SHORT, *twice, *options), tmp_path / "run")
    rows = [row for row in rows_of(trainer.directory) if row["phase"] == "repeat"]
    assert [row["epoch"] for row in rows if "train/errors" in row] == [2]


def test_predictions_leave_no_trace(tmp_path):
    trainer, method = trainer_of(read("backbone=small_cnn", "dataset.num_train=200"), tmp_path)
    method.train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    drawn = torch.get_rng_state()
    logits = logits_of(method, trainer.context)
    assert logits.shape == (200, 2)
    assert not logits.requires_grad
    assert same(before, method.state_dict())
    assert method.training
    assert torch.equal(torch.get_rng_state(), drawn)
    split, transform = trainer.context.splits[Split.TRAIN], trainer.context.splits.transform
    method.eval()
    assert torch.equal(method.predict(transform(split.fetch(torch.arange(200)).x)), logits)


@pytest.mark.parametrize("more", [(), ("features=frozen", "features/backbone=mlp")])
def test_fresh_weights_are_those_at_the_beginning_or_of_another_draw(more, tmp_path):
    trainer, method = trainer_of(read("backbone=mlp", "seed=3", *more), tmp_path)
    keep_table(method, "seen", trainer.context.splits.info, 0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    drawn = torch.get_rng_state()
    with torch.no_grad():
        for weight in method.parameters():
            weight += 1
    restart(method, trainer.context, draw=1)
    first = {name: value.clone() for name, value in method.state_dict().items()}
    assert not same(before, first)
    restart(method, trainer.context, draw=2)
    assert not same(first, method.state_dict())
    restart(method, trainer.context, draw=1)
    assert same(first, method.state_dict())
    method.seen += 1
    restart(method, trainer.context)
    assert (method.seen == 1).all()
    assert same(before, {**method.state_dict(), "seen": before["seen"]})
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_table_is_of_the_samples_of_train():
    cfg = read("dataset.num_train=200")
    splits, method = build.build(cfg)
    assert splits.info.num_train == len(splits[Split.TRAIN]) == 200
    for name, fill, dtype in (("a", False, torch.bool), ("b", 0, torch.long), ("c", 0.0, None)):
        keep_table(method, name, splits.info, fill)
        assert method.state_dict()[name].dtype == (dtype or torch.float32)
        assert getattr(method, name).shape == (200,)
    assert DataInfo(splits.info.spec, (1, 2, 2), torch.ones(4)).num_train == 0


# --- repeated and weighted samples ----------------------------------------------------------------


def ten():
    spec = GroupSpec(("a", "b"), ("x", "y"))
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    return GroupedDataset(spec, images, torch.arange(10) % 2, torch.zeros(10), torch.arange(10))


def stream(batch_size=4, **tables):
    return Stream(ten(), PLAIN, batch_size, seed=1, **tables)


def taken(of, count, position=0):
    feed = of.start(position)
    return [next(feed).index for _ in range(count)]


COUNTS = torch.tensor([3, 1, 1, 0, 1, 2, 1, 1, 1, 1])


def test_repeated_samples_are_in_every_epoch_as_often_as_asked():
    of = stream(repeats=COUNTS)
    assert len(of) == 3
    for epoch in range(3):
        indices = torch.cat(taken(of, 3, 3 * epoch))
        assert torch.equal(torch.bincount(indices, minlength=10), COUNTS)
    assert not torch.equal(torch.cat(taken(of, 3)), torch.cat(taken(of, 3, 3)))
    (whole,) = taken(stream(None, repeats=COUNTS), 1)
    assert torch.equal(torch.bincount(whole, minlength=10), COUNTS)


def test_weighted_samples_are_drawn_in_proportion():
    of = stream(weights=torch.tensor([8.0, *9 * [0.25], 0.0][:10]))
    indices = torch.cat(taken(of, 300))
    assert len(of) == 3
    assert 0.72 < (indices == 0).float().mean() < 0.84  # 8 of 10.25
    assert (torch.cat(taken(stream(weights=(COUNTS == 3).float()), 3)) == 0).all()


@pytest.mark.parametrize("tables", [{"repeats": COUNTS}, {"weights": COUNTS.float()}])
def test_such_a_stream_starts_anywhere(tables):
    whole = taken(stream(**tables), 8)
    for position in range(8):
        tail = taken(stream(**tables), 8 - position, position)
        assert all(map(torch.equal, tail, whole[position:])), position


def test_once_each_is_what_the_stream_is_without_a_table():
    assert all(
        map(torch.equal, taken(stream(repeats=torch.ones(10).long()), 5), taken(stream(), 5))
    )


@pytest.mark.parametrize(
    ("tables", "error", "said"),
    [
        ({"repeats": COUNTS[:9]}, ValueError, "each of the 10 samples"),
        ({"weights": -COUNTS.float()}, ValueError, "at least 0"),
        ({"repeats": 0 * COUNTS}, RunError, "repeats leave none"),
        ({"repeats": COUNTS, "sampling": "balanced"}, ValueError, "choose only one"),
        ({"repeats": COUNTS, "weights": COUNTS.float()}, ValueError, "choose only one"),
    ],
)
def test_a_table_that_cannot_be_is_refused(tables, error, said):
    with pytest.raises(error, match=said):
        stream(**tables)


def test_supervised_asks_for_its_table_when_its_stream_begins(tmp_path):
    trainer, method = trainer_of(read("backbone=mlp", "dataset.num_train=200"), tmp_path)
    info = trainer.context.splits.info
    keep_table(method, "counts", info, 1)
    phase = Supervised("again", method, 1, method.reduce, repeats=lambda: method.counts)
    method.counts[:7] = 3
    assert phase.streams(trainer.context)["train"].size == 200 + 14
    drawn = Supervised("drawn", method, 1, method.reduce, weights=lambda: method.counts == 3)
    indices = next(drawn.streams(trainer.context)["train"].start(0)).index
    assert indices.max() < 7
