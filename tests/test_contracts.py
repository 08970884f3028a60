"""What every method, data set and backbone must hold; plug-ins are found by listing conf/."""

import itertools
import os
from contextlib import suppress

import pytest
import torch
from conftest import REPO
from training import SHORT, Silent, expanded, read, rows_of, smallest, trainer_of, without_time

from spurcor.config import nodes, packages
from spurcor.config.resolvers import sweep_files
from spurcor.data.groups import Split
from spurcor.runs import build
from spurcor.sweeps.read import GROUPS
from spurcor.system.places import CONF

ALL_METHODS = packages.options("method")  # those of plug-ins too
METHODS = [name for name in ALL_METHODS if name != "frozen"]  # the one that trains nothing
DATASETS = packages.options("dataset")
OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
ANALYSES = sorted(path.stem for path in (CONF / "analysis").glob("*.yaml"))
ANALYSES.remove("none")
BACKBONES = packages.options("backbone")
SWEEPS = {
    "biased_mnist/masktune": 24,
    "celeba/masktune": 3,
    "celeba/people": 70,
    "celeba/prusc": 36,
    "celeba_scale/scale_tuning": 90,
    "cifar10/selective": 9,
    "colored_mnist/gradient_flow": 18,
    "colored_mnist/prusc": 21,
    "digits/label_free": 180,
    "digits/main": 25,
    "digits/prusc": 21,
    "digits/prusc_ablation": 30,
    "digits/random": 48,
    "dominoes/main": 60,
    "dominoes/main_two_cores": 27,
    "dominoes/scale_strength": 36,
    "dominoes/scale_target_size": 36,
    "dominoes/scale_tuning": 90,
    "ham10000/features": 140,
    "ham10000/fine_tuned": 8,
    "isic/prusc": 36,
    "mnist_cues/dfr": 6,
    "waterbirds/gradient_flow": 9,
    "waterbirds/masktune": 3,
    "waterbirds/prusc": 36,
}


def sweep_names():
    names = {"/".join(path.with_suffix("").parts[-2:]) for path in sweep_files()}
    return {name for name in names if not name.startswith("spaces/")}  # those are searched


class CrashError(Exception):
    pass


class Told(Silent):
    """An observer that keeps, for every step, its phase and the steps of an epoch."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def step(self, progress, phase, num_steps):
        self.steps.append((phase.name, num_steps))


def moments_of(steps):
    """Of every phase: its first step, an epoch's end, the steps around it, the phase's end."""
    found, first = set(), 0
    for (_, num_steps), same in itertools.groupby(steps):
        last = first + len(list(same))
        assert num_steps >= 2
        around = (first + num_steps + i for i in (-1, 0, 1))
        found |= {first + 1, last, *(step for step in around if step <= last)}
        first = last
    return sorted(found)


class StopAt(Silent):
    """An observer that raises after a number of steps, as a crash would."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def step(self, progress, phase, num_steps):
        self.left -= 1
        if self.left == 0:
            raise CrashError


@pytest.mark.parametrize("method", METHODS)
def test_a_method_resumes_exactly_from_every_kind_of_moment(method, tmp_path):
    small = (*smallest(method), "train.batch_size=200", "method.epochs=2")
    resumes_exactly(read(f"method={method}", *small, "train.checkpoint_seconds=0"), tmp_path)


def resumes_exactly(cfg, tmp_path):
    """In an epoch, at its end, and at the end of every phase, with a checkpoint at each step."""
    folder = tmp_path / "whole"
    folder.mkdir()
    whole, straight = trainer_of(cfg, folder)
    whole.observer = Told()
    whole.fit(straight)
    assert len(whole.observer.steps) == whole.progress.steps
    for moment in moments_of(whole.observer.steps):
        at = tmp_path / f"at{moment}"
        at.mkdir()
        first, broken = trainer_of(cfg, at)
        first.observer = StopAt(moment)
        with pytest.raises(CrashError):
            first.fit(broken)
        second, resumed = trainer_of(cfg, at)
        torch.manual_seed(12345)  # whatever the new process has drawn by now
        second.fit(resumed)
        assert second.progress.steps == whole.progress.steps
        assert without_time(rows_of(at)) == without_time(rows_of(folder))
        assert second.progress.selected == whole.progress.selected
        for name, value in straight.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name


def noisy(method):
    """Training that draws from the global generator at every step, as dropout does."""
    method.reduce = lambda losses, batch: (losses * torch.rand_like(losses)).mean()
    return method


def test_what_training_draws_is_the_same_after_a_resume(tmp_path):
    cfg = read(
        "backbone=mlp", "train.batch_size=200", "method.epochs=2", "train.checkpoint_seconds=0"
    )
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    whole.mkdir()
    crashed.mkdir()
    trainer, straight = trainer_of(cfg, whole)
    trainer.fit(noisy(straight))
    first, broken = trainer_of(cfg, crashed)
    first.observer = StopAt(6)
    with pytest.raises(CrashError):
        first.fit(noisy(broken))
    # A row that was written after the last checkpoint is taken back, and made again.
    with (crashed / "metrics.jsonl").open("a") as file:
        file.write((crashed / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    second, resumed = trainer_of(cfg, crashed)
    torch.manual_seed(12345)
    second.fit(noisy(resumed))
    assert without_time(rows_of(crashed)) == without_time(rows_of(whole))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_a_phase_draws_does_not_depend_on_what_was_drawn_before(tmp_path):
    ends = []
    for drawn in (0, 7):
        folder = tmp_path / str(drawn)
        folder.mkdir()
        trainer, method = trainer_of(read("backbone=mlp", "method.epochs=1"), folder)
        torch.rand(drawn)
        trainer.fit(noisy(method))
        ends.append(method.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_the_tiny_set(method, tmp_path):
    own = {
        "erm_target": ("method.epochs=12",),  # its epochs are of 300 images, not 797
        # Without a shortcut its set is what ERM gets wrong; TRAIN can be learnt all the same.
        "prusc": ("method.prune_epochs=5", "method.retrain_on=train", "method.retrain_epochs=4"),
    }
    options = ("method.epochs=4", "dataset.tint=0", "dataset.strength=0.5", *own.get(method, ()))
    cfg = read(f"method={method}", *options)
    trainer, trained = trainer_of(cfg, tmp_path)
    trainer.fit(trained)
    rows = rows_of(tmp_path)
    assert rows[-1]["train/loss"] < 0.6 * rows[0]["train/loss"]
    assert rows[-1]["val/average"] > 0.85


@pytest.mark.parametrize("method", METHODS)
def test_begin_and_evaluation_leave_the_method_alone(method, tmp_path):
    cfg = read(f"method={method}", "method.epochs=1", *SHORT.get(method, ()))
    trainer, trained = trainer_of(cfg, tmp_path)
    phases = trained.phases()
    begun = []

    def watched(phase, begin):
        def check(context):
            before = {name: value.clone() for name, value in trained.state_dict().items()}
            drawn = torch.get_rng_state()
            begin(context)
            assert not trained.training
            assert torch.equal(torch.get_rng_state(), drawn)
            for name, value in before.items():
                assert torch.equal(value, trained.state_dict()[name]), name
            begun.append(phase.name)

        return check

    for phase in phases:
        phase.begin = watched(phase, phase.begin)
    trained.phases = lambda: phases
    trainer.fit(trained)
    assert begun == [phase.name for phase in phases]


@pytest.mark.parametrize("method", METHODS)
def test_the_analyses_leave_no_trace(method, tmp_path):
    """Weights, batch-norm statistics, random draws and rows are those of a run without them."""
    options = ("method.epochs=2", "dataset.num_train=200", "train.eval_every=2")
    chosen = ",".join(ANALYSES)
    ends = []
    for name in ("none", f"[{chosen}]"):
        folder = tmp_path / str(len(ends))
        folder.mkdir()
        cfg = read(f"method={method}", *options, f"analysis={name}", *SHORT.get(method, ()))
        trainer, trained = trainer_of(cfg, folder)
        trainer.fit(trained)
        rows = without_time([row for row in rows_of(folder) if "val/worst" in row])
        kept = [
            {k: v for k, v in row.items() if k.partition("/")[0] not in ANALYSES} for row in rows
        ]
        ends.append((trained.state_dict(), torch.get_rng_state(), kept, len(rows_of(folder))))
    assert any("running_mean" in key for key in ends[0][0])
    for key, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][key]), key
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]
    assert ends[1][3] > ends[0][3]  # rows of what was measured between evaluations


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", METHODS)
def test_typed_beats_tuned_beats_dataset(dataset, method):
    at = DATASETS.index(dataset) + METHODS.index(method)  # each optimizer with many of the pairs
    optimizer = OPTIMIZERS[at % len(OPTIMIZERS)]
    pair = (f"dataset={dataset}", f"method={method}", f"optimizer={optimizer}")
    plain = read(*pair)
    typed = read(*pair, "optimizer.lr=0.125", "method.epochs=3", "train.batch_size=7")
    assert typed.optimizer.arguments["lr"] == 0.125
    assert typed.method.arguments["epochs"] == 3
    assert typed.train.batch_size == 7
    tuned = CONF / "tuned" / dataset / f"{method}.yaml"
    if tuned.exists():
        import yaml

        values = yaml.safe_load(tuned.read_text())
        for node, arguments in values.items():
            found = getattr(plain, node)
            for key, value in arguments.items():
                actual = getattr(found, key, None) or found.arguments.get(key)
                assert nodes.plain(actual) == value, f"{tuned}: {node}.{key}"


def test_tuned_files_name_pairs_that_exist_and_say_where_they_come_from():
    for path in (CONF / "tuned").glob("*/*.yaml"):
        assert path.parent.name in DATASETS
        assert path.stem in ALL_METHODS
        assert path.read_text().count("#") >= 2, f"{path} names no source"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_composes_and_passes_check(backbone):
    model = ["backbone.model=resnet18"] if backbone == "timm" else []  # it has none of its own
    assert packages.own(read(f"backbone={backbone}", *model).backbone.target)


@pytest.mark.parametrize("group", ["dfr", "schedule", "tracker", "features", "analysis"])
def test_every_option_of_the_other_groups_passes_check(group):
    for path in (CONF / group).glob("*.yaml"):
        read(f"{group}={path.stem}")


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_file_composes_and_has_its_number_of_points(name):
    cfg, points, checked = composed(name)
    assert len({tuple(point) for point in points}) == len(points) == SWEEPS[name]
    assert {one.sweep for one in checked} == {cfg.sweep}
    # A point is a run, or another repair of one.
    assert len({(one.directory, tuple(one.needs)) for one in checked}) == len(checked)
    # What all points share stands in the file's defaults, so that its options can be typed.
    for group in GROUPS:
        chosen = {one.choices.get(group) for one in checked}
        assert len(chosen) > 1 or chosen == {cfg.hydra.runtime.choices.get(group)}, group


@pytest.mark.parametrize("name", sorted(sweep_names() - SWEEPS.keys()))
def test_a_sweep_file_of_ones_own_composes(name):
    assert composed(name)[2]


def composed(name):
    """A sweep, its points, and some of them checked: composing takes a tenth of a second each."""
    cfg, points = expanded(f"+sweeps={name}")
    some = points[:: max(1, len(points) // 12)]
    # A run that others start from is not there.
    words = [[word for word in point if not word.startswith("method.init=")] for point in some]
    return cfg, points, [read(*point) for point in words]


def test_a_sweep_file_of_ones_own_is_found_in_a_package_too(monkeypatch, tmp_path):
    package = tmp_path / "sweeping"
    (package / "conf" / "sweeps" / "digits").mkdir(parents=True)
    (package / "__init__.py").touch()
    text = (REPO / "sweeps" / "digits" / "main.yaml").read_text()
    (package / "conf" / "sweeps" / "digits" / "of_a_package.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(packages.VARIABLE, package.name)
    assert "digits/of_a_package" in sweep_names()
    assert len(composed("digits/of_a_package")[1]) == SWEEPS["digits/main"]


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        (("+sweeps=dominoes/scale_strength", "method.gate=linear"), 18),
        (("+sweeps=dominoes/scale_tuning", "seed=0", "method.group_size=4,16"), 2 * 24),
        (("+sweeps=biased_mnist/masktune", "method=masktune", "method.mask=saliency"), 6),
        (("+sweeps=colored_mnist/gradient_flow", "backbone.width=64"), 18),
    ],
)
def test_a_typed_option_narrows_a_sweep_file(typed, count):
    _, points = expanded(*typed)
    checked = [read(*point) for point in points[:: len(points) // 12 | 1]]  # odd: values alternate
    assert len(points) == count
    assert len({one.directory for one in checked}) == len(checked)
    key, _, values = typed[-1].partition("=")
    assert {str(one.settings[key]) for one in checked} == set(values.split(","))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_and_memory_format_train(precision, tmp_path):
    cfg = read("method.epochs=1", f"train.precision={precision}", "train.channels_last=true")
    trainer, method = trainer_of(cfg, tmp_path)
    trainer.fit(method)
    assert rows_of(tmp_path)[-1]["train/loss"] < 1.0
    batch = trainer.context.splits[Split.VAL].fetch(torch.arange(4))
    assert method.predict(trainer.context.splits.transform(batch.x)).dtype == torch.float32


def test_training_does_not_depend_on_when_checkpoints_are_written(tmp_path):
    ends = []
    for seconds in ("0", "60"):
        folder = tmp_path / seconds
        folder.mkdir()
        options = ("method.epochs=2", "train.eval_every=2", "backbone=mlp", "train.batch_size=200")
        cfg = read(*options, f"train.checkpoint_seconds={seconds}")
        trainer, method = trainer_of(cfg, folder)
        trainer.fit(method)
        ends.append((without_time(rows_of(folder)), method.state_dict()))
    assert ends[0][0] == ends[1][0]
    for name, value in ends[0][1].items():
        assert torch.equal(value, ends[1][1][name])


def test_early_stopping_ends_a_phase_and_keeps_the_best_epoch(tmp_path):
    cfg = read(
        "method.epochs=40",
        "train.early_stopping={patience: 2, metric: val/loss}",
        "train.selection=val/loss",
        "optimizer.lr=0.01",
        "backbone=mlp",
    )
    trainer, method = trainer_of(cfg, tmp_path)
    trainer.fit(method)
    losses = [row["val/loss"] for row in rows_of(tmp_path)]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2 < 40
    assert trainer.progress.selected.epoch == best + 1


def test_patience_begins_anew_with_a_phase_and_goes_on_after_a_crash(tmp_path):
    cfg = read(
        "method=prusc", *smallest("prusc"), "method.num_clusters=16", "method.epochs=12",
        "method.prune_epochs=12", "method.retrain_epochs=12", "method.retrain_lr=0.03",
        "train.early_stopping={patience: 2, metric: val/average}", "train.checkpoint_seconds=0",
        "train.batch_size=100", "train.eval_every=2",
    )  # fmt: skip
    ends = []
    for name in ("whole", "crashed"):
        folder = tmp_path / name
        folder.mkdir()
        for stop in (0,) if name == "whole" else (106, 21, 0):  # while phases wait
            trainer, method = trainer_of(cfg, folder)
            trainer.observer = StopAt(stop)
            with suppress(CrashError):
                trainer.fit(method)
        ends.append((without_time(rows_of(folder)), trainer.progress.selected.epoch))
    assert ends[0] == ends[1]
    waited = {}
    for phase in ("erm", "prune", "retrain"):
        scores = [row["val/average"] for row in ends[0][0] if row["phase"] == phase]
        waited[phase] = len(scores) - 1 - scores.index(max(scores))
        assert waited[phase] == 2 or (waited[phase] < 2 and len(scores) == 6)
    assert list(waited.values()).count(2) >= 2, "too few phases end early to tell"


def test_kept_epochs_and_handed_rows(tmp_path):
    cfg = read("method.epochs=3", "train.keep_epochs=[1,3]", "backbone=mlp")
    trainer, method = trainer_of(cfg, tmp_path)
    trainer.fit(method)
    kept = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert kept == ["erm-1.safetensors", "erm-3.safetensors"]
    assert len(trainer.observer.handed) == 3
    assert os.path.getsize(tmp_path / "checkpoint.pt") > 0


def test_a_run_leaves_its_threads_to_itself():
    before = torch.get_num_threads()
    try:
        build.build(read("train.num_threads=3"))
        assert torch.get_num_threads() == 3
        build.build(read())
        assert torch.get_num_threads() == build.DEFAULT_THREADS
    finally:
        torch.set_num_threads(before)
