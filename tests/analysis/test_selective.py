"""Selective classification against plain loops, at a run's end and of two runs."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from training import read

from spurcor.analysis.selective import (
    Answers,
    Selective,
    Stored,
    answered,
    calibrate,
    product,
    risk_coverage,
    single,
)
from spurcor.data.groups import GroupSpec
from spurcor.errors import UserError
from spurcor.runs import build, execute
from spurcor.system.terminal import Terminal

SPEC = GroupSpec(("a", "b", "c"), ("x", "y"))
COVERAGES = (0.8, 0.85, 0.9, 0.95, 1.0)


def softmax(row):
    powers = [math.exp(v) for v in row]
    return [p / sum(powers) for p in powers]


def test_the_product_rule_by_loops():
    torch.manual_seed(0)
    first, second = torch.randn(20, 4), 3 * torch.randn(20, 4)
    found = product(first, second)
    for i in range(20):
        p1, p2 = softmax(first[i].double().tolist()), softmax(second[i].double().tolist())
        q = softmax([a * b for a, b in zip(p1, p2, strict=True)])
        assert int(found.predicted[i]) == q.index(max(q))
        assert float(found.confidence[i]) == pytest.approx(max(q), abs=1e-12)
        alone = single(second)
        assert float(alone.confidence[i]) == pytest.approx(max(p2), abs=1e-12)


def test_thresholds_are_the_published_places_and_fall():
    torch.manual_seed(0)
    for count in (7, 100, 1203):
        confidence = torch.rand(count, dtype=torch.float64)
        ranked = sorted(confidence.tolist(), reverse=True)
        found = calibrate(confidence, COVERAGES)
        assert found == [ranked[min(round(c * count), count - 1)] for c in COVERAGES]
        assert found[-1] == min(ranked)  # of VAL; what is less sure still is not answered
        assert found == sorted(found, reverse=True)
        accepted = [int((confidence >= t).sum()) for t in found]
        assert accepted == sorted(accepted)
        assert accepted[-1] == count
        for c, n in zip(COVERAGES, accepted, strict=True):
            assert abs(n - c * count) <= 1.5


def test_the_area_under_risk_and_coverage_by_loops():
    confidence = torch.tensor([0.9, 0.5, 0.9, 0.7, 0.5, 0.2], dtype=torch.float64)
    wrong = torch.tensor([False, True, True, False, False, True])
    coverage, risk, area = risk_coverage(confidence, wrong)
    assert coverage.tolist() == pytest.approx([2 / 6, 3 / 6, 5 / 6, 1])
    assert risk.tolist() == pytest.approx([1 / 2, 1 / 3, 2 / 5, 3 / 6])
    assert area == pytest.approx((2 / 2 + 1 / 3 + 2 * 2 / 5 + 3 / 6) / 6)
    order = torch.tensor([4, 3, 5, 2, 0, 1])
    assert risk_coverage(confidence[order], wrong[order])[2] == pytest.approx(area)
    perfect = risk_coverage(confidence, torch.zeros(6, dtype=torch.bool))
    assert perfect[2] == 0


def test_abstaining_does_not_hide_a_group():
    y = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    g = SPEC.group(y, torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]))
    right = torch.tensor([True, True, True, False, True, False, True, False])
    accepted = torch.tensor([True, False, True, True, True, True, False, False])
    found = answered(accepted, right, y, g, SPEC)
    assert found["coverage"] == 5 / 8
    assert found["error"] == pytest.approx(2 / 5)
    assert found["groups"] == {
        "a/x": {"coverage": 0.5, "accuracy": 1.0, "count": 2},
        "a/y": {"coverage": 1.0, "accuracy": 0.5, "count": 2},
        "b/x": {"coverage": 1.0, "accuracy": 0.5, "count": 2},
        "c/y": {"coverage": 0.0, "accuracy": None, "count": 2},
    }
    assert found["classes"]["a"] == {"coverage": 0.75, "accuracy": pytest.approx(2 / 3), "count": 4}
    assert found["worst"] == 0.5
    assert found["worst_coverage"] == 0.0
    nothing = answered(torch.zeros(8, dtype=torch.bool), right, y, g, SPEC)
    assert (nothing["coverage"], nothing["error"], nothing["worst"]) == (0.0, None, None)
    json.dumps(nothing, allow_nan=False)


def stored(name, logits, y, spec):
    """The same predictions on val and test."""
    splits = ("val", "test")
    g = spec.group(y, torch.zeros(len(y), dtype=torch.int64))
    return Stored(name, spec, *(dict.fromkeys(splits, value) for value in (logits, y, g)))


def test_the_agreement_rule_by_loops(tmp_path):
    torch.manual_seed(1)
    first, second = 2 * torch.randn(200, 3), 2 * torch.randn(200, 3)
    y = torch.randint(3, (200,))
    selective = Selective(confidence=0.8, difficult=("b",), leniency=0.7)
    networks = [stored("one", first, y, SPEC), stored("two", second, y, SPEC)]
    found = selective.compare(networks, tmp_path)["rules"]["agreement"]["test"]
    agreed = accepted = correct = 0
    for i in range(200):
        p = softmax(second[i].double().tolist())
        mine, other = p.index(max(p)), int(first[i].argmax())
        if mine == other:
            agreed += 1
            if max(p) >= 0.8 * (0.7 if mine == 1 else 1):
                accepted += 1
                correct += mine == int(y[i])
    assert found["agreement"] == pytest.approx(agreed / 200)
    assert found["rejection"] == pytest.approx((agreed - accepted) / agreed)
    assert found["coverage"] == pytest.approx(accepted / 200)
    assert found["error"] == pytest.approx(1 - correct / accepted)
    assert 0 < accepted < agreed < 200
    assert (tmp_path / "plots" / "risk_coverage.png").exists()
    table = (tmp_path / "table.md").read_text()
    assert table.count("| product ") == 5
    assert "networks agree on" in table
    with pytest.raises(UserError, match=r"no class is called d; .* a, b, c"):
        Selective(difficult=("d",)).compare(networks, tmp_path)


def test_several_labels_by_loops(tmp_path):
    torch.manual_seed(2)
    spec = GroupSpec(("bald", "young"), (), task="multilabel")
    first, second, y = torch.randn(300, 2), torch.randn(300, 2), torch.randint(2, (300, 2))
    networks = [stored("one", first, y, spec), stored("two", second, y, spec)]
    report = Selective(label_confidence=0.6).compare(networks, tmp_path)
    found = report["rules"]["agreement"]["test"]
    agreed, hits = 0, []
    for i in range(300):
        mine = [v > 0 for v in second[i].tolist()]
        if mine == [v > 0 for v in first[i].tolist()]:
            agreed += 1
            if max(1 / (1 + math.exp(-v)) for v in second[i].tolist()) > 0.6:
                hits.append([a == bool(b) for a, b in zip(mine, y[i].tolist(), strict=True)])
    assert found["agreement"] == pytest.approx(agreed / 300)
    assert found["coverage"] == pytest.approx(len(hits) / 300)
    assert found["rejection"] == pytest.approx(1 - len(hits) / 300)
    assert found["accuracy"] == pytest.approx(sum(map(sum, hits)) / (2 * len(hits)))
    assert found["exact"] == pytest.approx(sum(map(all, hits)) / len(hits))
    assert found["labels"]["young"] == pytest.approx(sum(h[1] for h in hits) / len(hits))
    assert 0 < len(hits) < agreed < 300
    assert report["metrics"]["agreement/accuracy/test"] == found["accuracy"]
    assert "test" in (tmp_path / "table.md").read_text()


# --- of runs --------------------------------------------------------------------------------------

SMALL = ("dataset.subset_size=100", "backbone=small_cnn", "tracker=none", "dfr=none")


def executed(outputs, *overrides):
    cfg = read(*SMALL, "method.epochs=2", f"paths.outputs={outputs}", *overrides)
    outcome = execute.execute(cfg, Terminal(quiet=True))
    assert outcome.status == "done", outcome.message
    return cfg, outcome.result


def answered_at_most(directory):
    """Coverage and error of what is at least as sure as the least sure sample of VAL."""
    with np.load(directory / "predictions.npz") as arrays:
        val, test = (single(torch.from_numpy(arrays[f"{s}/logits"])) for s in ("val", "test"))
        wrong = test.predicted.numpy() != arrays["test/y"]
    accepted = (test.confidence >= val.confidence.min()).numpy()
    return {"coverage": accepted.mean(), "error": wrong[accepted].mean()}


def test_a_run_of_masktune_ends_with_both_networks_and_their_rules(tmp_path):
    cfg, result = executed(tmp_path, "method=masktune", "analysis=selective")
    (part,) = result["analysis"].values()
    assert list(part["rules"]) == ["erm", "masktune", "product", "agreement"]
    for rule in ("erm", "masktune", "product"):
        for split in ("test", "opposite"):
            rows = part["rules"][rule][split]["coverages"]
            assert [row["nominal"] for row in rows] == list(COVERAGES)
            covered = [row["coverage"] for row in rows]
            assert covered == sorted(covered)
    for name, folder in (("masktune", ""), ("erm", "phases/erm")):
        most = part["rules"][name]["test"]["coverages"][-1]
        expected = answered_at_most(cfg.directory / folder)
        assert {key: most[key] for key in expected} == pytest.approx(expected)
    (folder,) = (cfg.directory / "analysis").glob("selective-*")
    assert (folder / "plots" / "risk_coverage.png").exists()


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_run_that_starts_from_another_answers_with_that_one(iterations, tmp_path, command_line):
    one, first = executed(tmp_path, "method=erm", "train.selection=val/average")
    assert first["selected"]["epoch"] == 2, "the two commands compare the same networks"
    options = (f"method.init={one.identity}", f"method.iterations={iterations}")
    two, result = executed(tmp_path, "method=masktune", "analysis=selective", *options)
    (part,) = result["analysis"].values()
    assert list(part["rules"]) == ["erm", "masktune", "product", "agreement"]
    command = ("selective", f"paths.outputs={tmp_path}", f"runs=[{one.identity},{two.identity}]")
    assert command_line.run(*command).code == 0
    (path,) = tmp_path.glob("selective/*/result.json")
    assert part["rules"] == json.loads(path.read_text())["rules"]
    # What an older version made has no first network, which is not passed over.
    shutil.rmtree(two.directory / "phases" / "erm")
    other = read("analysis=selective", "analysis.selective.confidence=0.5").analysis
    with pytest.raises(UserError, match=r"spurcor\.selective runs="):
        execute.analyze(
            two.directory, dataclasses.replace(two, analysis=other), Terminal(quiet=True)
        )


def test_any_other_run_has_its_own_confidence_also_afterwards(tmp_path):
    _, result = executed(tmp_path, "method=erm")
    assert result["analysis"] == {}
    cfg, result = executed(tmp_path, "method=erm", "analysis=selective")
    (part,) = result["analysis"].values()
    assert list(part["rules"]) == ["erm"]
    found = {key: part["metrics"][f"erm/{key}_at_100/test"] for key in ("coverage", "error")}
    assert found == pytest.approx(answered_at_most(cfg.directory))


def test_two_finished_runs_are_compared_from_their_files(tmp_path, command_line):
    one, _ = executed(tmp_path, "method=erm")
    two, _ = executed(tmp_path, "method=masktune")
    command = ("selective", f"paths.outputs={tmp_path}")
    ended = command_line.run(*command, f"runs=[{one.identity},{two.identity}]")
    assert ended.code == 0, ended.err
    assert "| product" in ended.out
    folder = tmp_path / "selective" / f"{one.identity}-seed0_{two.identity}-seed0"
    part = json.loads((folder / "result.json").read_text())
    assert list(part["rules"]) == ["erm", "masktune", "product", "agreement"]
    for name, cfg in (("erm", one), ("masktune", two)):
        most = part["rules"][name]["test"]["coverages"][-1]
        assert most["error"] == pytest.approx(answered_at_most(cfg.directory)["error"])
    other, _ = executed(tmp_path, "method=erm", "dataset.split_seed=1")
    for arguments, message in (
        (f"runs=[{one.identity},{other.identity}]", f"{one.identity} and {other.identity}"),
        (f"runs=[{one.identity}]", "must name two runs"),
        (f"runs=[{one.identity},nothing]", "runs=nothing "),
    ):
        ended = command_line.run(*command, arguments)
        assert ended.code == 2
        assert message in ended.err
    ended = command_line.run(
        *command, f"runs=[{one.identity},{two.identity}]", "analysis.selective.coverages=[0.5,1.5]"
    )
    assert ended.code == 2
    assert "must be above 0 and at most 1" in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("analysis.selective.coverages=[0]",), r"coverages=\[0.0\] must be above 0 and at most 1"),
        (("analysis.selective.coverages=[]",), "must be above 0 and at most 1"),
        (("analysis.selective.difficult=[nine]",), "no class is called nine; .* small"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(options, message, tmp_path):
    cfg = read(*SMALL, "analysis=selective", f"paths.outputs={tmp_path}", *options)
    with pytest.raises(UserError, match=message):
        execute.execute(cfg, Terminal(quiet=True))
    assert not list(tmp_path.iterdir())


def test_several_labels_need_two_networks(tmp_path, small_root):
    cfg = read("dataset=celeba_attributes", "backbone=small_cnn", "analysis=selective")
    cfg = dataclasses.replace(cfg, paths=dataclasses.replace(cfg.paths, data=small_root))
    splits, method = build.build(cfg)
    with pytest.raises(ValueError, match=r"python -m spurcor\.selective"):
        cfg.analysis["selective"].build().check(method, splits)


def test_answers_are_float64_so_that_few_confidences_are_equal():
    found = single(torch.tensor([[20.0, 0.0], [21.0, 0.0]]))
    assert isinstance(found, Answers)
    assert found.confidence[0] < found.confidence[1] < 1
