"""What `config.check` takes and refuses, of a configuration that is composed once."""

import copy
import math

import pytest
from training import read

from spurcor.config import check, nodes, schema
from spurcor.errors import UserError
from spurcor.tracking.sender import Store

FOREIGN = {"_target_": "torch.nn.Identity"}
HUGE = 10**20


@pytest.fixture(scope="module")
def tree():
    chosen = ("optimizer=adam", "dfr=val", "features=frozen", "backbone=mlp", "+optimizer.eps=1e-8")
    return nodes.plain(read(*chosen))


def told(tree, key, value):
    """What is said of the configuration with that value."""
    changed = copy.deepcopy(tree)
    *parents, last = key.split(".")
    node = changed
    for parent in parents:
        node[parent] = node.get(parent) or {}
        node = node[parent]
    node[last] = value
    with pytest.raises(UserError) as error:
        check.check(changed, schema.TrainConfig)
    assert len(str(error.value).splitlines()) == 1
    assert key in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf"])
@pytest.mark.parametrize(
    "key",
    ["optimizer.lr", "optimizer.weight_decay", "optimizer.eps", "train.checkpoint_seconds",
     "dataset.strength", "dataset.target_fraction", "site.mem_gb", "dfr.ratio"],
)  # fmt: skip
def test_a_number_is_finite(tree, key, value):
    assert f"{key}={value} is not finite" in told(tree, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.betas", [0.9, math.nan]),
        ("dfr.c_grid", [1.0, math.inf]),
        ("site.additional_parameters", {"a": [{"b": math.inf}]}),
    ],
)
def test_numbers_in_lists_are_finite(tree, key, value):
    assert "is not finite" in told(tree, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.num_threads", 100_000_000), ("train.num_threads", HUGE), ("train.batch_size", HUGE),
        ("method.epochs", HUGE), ("dataset.workers", HUGE), ("site.cpus_per_task", HUGE),
        ("train.keep_epochs", [1, HUGE]), ("train.eval_every", HUGE), ("seed", HUGE),
    ],
)  # fmt: skip
def test_sizes_that_nothing_has_are_refused(tree, key, value):
    told(tree, key, value)


def test_more_processes_than_a_machine_has_are_refused(tree):
    changed = {**tree, "dataset": {**tree["dataset"], "workers": 100_000}}
    with pytest.raises(UserError, match=r"^dataset\.workers=100000 "):
        check.check(changed, schema.TrainConfig).dataset.build()


@pytest.mark.parametrize("epochs", [[-1], [0], [3, 0]])
def test_epochs_are_counted_from_1(tree, epochs):
    assert f"keep_epochs={epochs}" in told(tree, "train.keep_epochs", epochs)


@pytest.mark.parametrize("value", [FOREIGN, [FOREIGN], {"a": FOREIGN}])
@pytest.mark.parametrize(
    "key",
    ["train.batch_size", "seed", "sweep", "train.selection", "dataset.drop_groups", "site.setup",
     "optimizer.weight_decay", "optimizer.foreach", "paths.data", "method.epochs", "choices",
     "site.additional_parameters", "dfr.layer", "features.layer", "point"],
)  # fmt: skip
def test_a_class_is_no_plain_value(tree, key, value):
    told(tree, key, value)


@pytest.mark.parametrize(
    "key", ["_target_", "train._target_", "site._target_", "paths._target_", "features._target_"]
)
def test_a_mapping_of_options_names_no_class(tree, key):
    assert f"unknown key {key}" in told(tree, key, "torch.nn.Identity")


@pytest.mark.parametrize("role", check.ROLES)
def test_every_role_is_kept_by_its_own_classes_only(tree, role):
    path = role.replace("*", "odd")
    contract = check.ROLES[role]
    for target in (
        "torch.nn.Identity",
        "spurcor.data.groups.Split",
        "spurcor.training.method.Supervised",
    ):
        told(tree, path, {"_target_": target})
    if (
        contract.startswith("spurcor.") and contract != "spurcor.repair.dfr.Dfr"
    ):  # which is what is built
        told(tree, path, {"_target_": contract})


@pytest.mark.parametrize("value", ["a\0b", "a\udcffb"])
@pytest.mark.parametrize("key", ["paths.outputs", "paths.data", "site.partition", "choices.odd"])
def test_a_text_can_be_a_file_name_in_utf8(tree, key, value):
    changed = copy.deepcopy(tree)
    parent, _, last = key.partition(".")
    changed[parent][last] = value
    with pytest.raises(UserError, match=r"NUL character|UTF-8"):
        check.check(changed, schema.TrainConfig)


@pytest.mark.parametrize("value", [None, 5, [1], "text", True])
@pytest.mark.parametrize("key", ["train", "paths", "site"])
def test_a_group_of_options_is_a_mapping(tree, key, value):
    assert f"{key}={value} is not a mapping of " in told(tree, key, value)


@pytest.mark.parametrize("value", [None, 5, [1], "text", True, {}])
@pytest.mark.parametrize("key", ["dataset", "method", "optimizer", "features.backbone"])
def test_a_group_with_a_class_is_told_as_one(tree, key, value):
    assert f"{key} has no _target_" in told(tree, key, value)


def test_no_name_is_suggested_for_itself(tree):
    assert check.nearest("seed", ["seed", "sweep"]) != "seed"
    assert check.nearest("sede", ["seed", "sweep"]) == "seed"
    backbone = {"_target_": "spurcor.backbones.cifar_resnet.CifarResNet", "depth": "32"}
    assert "did you mean 32" not in told({**tree, "backbone": backbone}, "backbone.depth", "32")


def test_a_hint_that_pydantic_cannot_check_is_no_traceback():
    """A class with such a hint is not meant for configurations, but its name can be typed."""
    problems = []
    assert check._coerce("backbone.store", 3, Store, problems) is None
    assert problems == ["backbone.store=3 is not a value of type Store"]
