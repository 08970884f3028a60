"""Names of runs on disk: they outlive versions of the code, unless its numbers changed."""

import pytest
from training import read

from spurcor.analysis.output_moments import OutputMoments
from spurcor.analysis.selective import Selective
from spurcor.config.check import check_saved
from spurcor.config.nodes import Node, locate, plain
from spurcor.config.schema import TrainConfig, analysis_name, dfr_name
from spurcor.errors import UserError
from spurcor.methods.erm import Erm
from spurcor.methods.scale import Scale
from spurcor.repair.dfr import Dfr

HERE = ("paths.data=/nowhere", "paths.outputs=/nowhere")
# What these commands are named: a change here makes users train everything again, and is right only
# where the numbers changed (`revision`).
IDENTITIES = {
    "": "ra362293c36",
    "method=iw": "r631ca4f93a",
    "method=group_dro": "r0da9a046bb",
    "method=scale": "r2b97b595c3",
    "method=erm_target": "rcc5a770cb7",
    "method=masktune backbone=small_cnn": "r278f6058ae",
    "method=prusc": "r58e4e9cbb5",
    "method=frozen features=frozen features/backbone=resnet18": "rec32ab3ade",
    "method=scale dataset=celeba": "r5ab0f76c24",
    "method=group_dro dataset=waterbirds": "rf7f3c19977",
    "dataset=isic": "r6eb08b77f0",
    "method=masktune dataset=cifar10": "rcf88de9157",
    "method=scale dataset=dominoes": "r2d6c7405f5",
    "dataset=colored_mnist optimizer=adam": "r67be5162d2",
    "dataset=mnist_cues": "r23727d73c0",
    "schedule=step train.loss=mse train.precision=bf16": "r8c6ca6e7cf",
    "dataset.target_from=val dataset.target_fraction=0.5": "r952f999be3",
    "dataset=celeba_attributes": "rc5211baea4",
    "dataset=celeba_scale": "r8692e90fb0",
    "dataset=dominoes_cars": "r99df991525",
    "dataset=dominoes_fashion": "reab3841a99",
    "dataset=fashion_mnist": "rb4875ce695",
}
REPAIRS = {
    "gradient_flow": "val-abba6ea8",
    "new_repo": "val-a72e1bd7",
    "sgd": "target-f012d842",
    "target": "target-4e4a11ec",
    "scale": "target-65cf30c4",
    "train": "train-0acb2aa3",
    "val": "val-d0647c58",
}
ANALYSES = {
    "gap_dynamics": "gap_dynamics-097e6f9b",
    "gradient_basis": "gradient_basis-b31fb002",
    "jacobian_norm": "jacobian_norm-a5da9517",
    "output_moments": "output_moments-683317a7",
    "static_dynamic": "static_dynamic-0794d5dc",
    "selective": "selective-c2896d2e",
}


# Names of the first revision, for what has a second one: runs on disk still have them.
FIRST = {
    "method=scale": "r89d79857ab",
    "method=scale dataset=celeba": "r9dac3079ca",
    "method=scale dataset=dominoes": "r1e084a1be0",
    "dfr=new_repo": "val-23ef407a",
    "dfr=sgd": "target-f0da80b5",
    "dfr=target": "target-cb31bf4b",
    "dfr=scale": "target-9f13a302",
    "dfr=train": "train-f1a43c9c",
    "dfr=val": "val-96d5dd12",
    "analysis=output_moments": "output_moments-98e545e6",
    "analysis=selective": "selective-6b3f28ee",
}
SECOND = (Scale, Dfr, OutputMoments, Selective)


@pytest.mark.parametrize("command", IDENTITIES)
def test_a_command_names_the_run_that_it_always_named(command):
    assert read(*HERE, *command.split()).identity == IDENTITIES[command]


@pytest.mark.parametrize("name", REPAIRS)
def test_a_repair_keeps_its_folder(name):
    assert dfr_name(read(*HERE, f"dfr={name}").dfr) == REPAIRS[name]


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_keeps_its_folder(name):
    node = read(*HERE, f"analysis={name}").analysis[name]
    assert analysis_name(name, node) == ANALYSES[name]


@pytest.mark.parametrize("command", FIRST)
def test_what_was_made_by_a_first_revision_keeps_its_name(command, monkeypatch):
    for owner in SECOND:
        monkeypatch.setattr(owner, "revision", 1)
    saved = plain(read(*HERE, *command.split()))
    monkeypatch.undo()
    config = check_saved(saved, TrainConfig)
    kind, _, option = command.split()[0].partition("=")
    names = {
        "method": config.identity,
        "dfr": config.dfr and dfr_name(config.dfr),
        "analysis": [analysis_name(*item) for item in config.analysis.items() if item[0] == option],
    }
    assert names[kind] in (FIRST[command], [FIRST[command]])


def test_a_revision_of_a_class_renames_what_is_made_by_it_and_nothing_before(monkeypatch):
    before = read(*HERE)
    saved = plain(before)
    monkeypatch.setattr(Erm, "revision", 2, raising=False)
    after = read(*HERE)
    assert after.identity != before.identity
    assert check_saved(saved, TrainConfig).identity == before.identity  # a run of the first
    assert check_saved(plain(after), TrainConfig).identity == after.identity
    assert plain(after)["method"]["_revision_"] == 2


def test_a_revision_of_a_nested_class_counts(monkeypatch):
    node = read(*HERE).dataset
    before = node.hashed()
    inner = node.arguments["transform"]
    assert isinstance(inner, Node)
    monkeypatch.setattr(locate(inner.target), "revision", 2, raising=False)
    assert read(*HERE).dataset.hashed() != before


def test_nobody_chooses_a_revision():
    with pytest.raises(UserError, match=r"method\._revision_"):
        read(*HERE, "+method._revision_=1")
