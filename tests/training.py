"""Training in the test's own process: composed configurations, trainers, rows."""

import dataclasses
import json

import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from spurcor.analysis.contract import Analyses
from spurcor.config import resolvers
from spurcor.config.check import check
from spurcor.config.schema import TrainConfig
from spurcor.launchers.points import Points
from spurcor.runs import build
from spurcor.runs.execute import execute
from spurcor.runs.reference import obtain
from spurcor.sweeps import read as sweeps
from spurcor.sweeps.search_options import SearchOptions
from spurcor.sweeps.space import parse_space
from spurcor.system.places import CONF
from spurcor.system.terminal import Terminal
from spurcor.training.method import RunContext
from spurcor.training.trainer import Trainer


def read(*overrides: str) -> TrainConfig:
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    choices = cfg.hydra.runtime.choices
    return sweeps.read(cfg, choices)


def expanded(*typed: str):
    """The configuration that a sweep is made from, and the overrides of its points."""
    resolvers.register()
    scalar = [one for one in typed if "," not in one]  # as Hydra does with -m
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", scalar, return_hydra_config=True)
    sweeper = cfg.hydra.sweeper
    if "search" in sweeper:
        return cfg, searched(cfg, typed)
    return cfg, Points(sweeper.points, sweeper.params, sweeper.zip).expand(list(typed))


def searched(cfg, typed):
    """Points at the ends of every key that a search has, for a space and options that are good."""
    parser = OverridesParser.create()
    overrides = parser.parse_overrides(list(typed))
    options = OmegaConf.to_container(cfg.hydra.sweeper)
    del options["_target_"]
    search = check(options, SearchOptions).search or {}
    fixed = [str(one.input_line) for one in overrides if not one.is_sweep_override()]
    space = parse_space(search, overrides, parser)
    probes = space.probes(cfg.hydra.runtime.choices)
    drawn = [values for _, low, others in probes for values in (low, *others)]
    return [[*fixed, *(f"{key}={value}" for key, value in values.items())] for values in drawn]


SMALL = ("backbone=mlp", "backbone.width=16")
# A few epochs for methods of several phases; digits of both classes in a cluster of PruSC's, even
# when the network has learnt them.
SHORT = {"prusc": ("dataset.strength=0.7", "method.prune_epochs=3", "method.retrain_epochs=2")}
# What a method needs beside the smallest backbone, or in its place, to be run for a moment.
SMALLEST = {"masktune": ("backbone=small_cnn",), "prusc": (*SMALL, *SHORT["prusc"])}


def smallest(method: str) -> tuple[str, ...]:
    """Overrides."""
    return SMALLEST.get(method, SMALL)


class Silent:
    """An observer that keeps the rows it is handed."""

    def __init__(self):
        self.handed = []

    def step(self, progress, phase, num_steps):
        pass

    def row(self, row, phase):
        pass

    def rows(self, rows):
        self.handed = list(rows)


def with_reference(cfg: TrainConfig, outputs) -> TrainConfig:
    """The configuration under other outputs, where its reference run is finished if it has one."""
    if cfg.groups is None:
        return cfg
    there = {"paths": dataclasses.replace(cfg.paths, outputs=outputs), "tracker": {}}
    cfg = dataclasses.replace(cfg, **there)
    obtain(cfg, lambda reference: execute(reference, Terminal(quiet=True)))
    return cfg


def trainer_of(cfg: TrainConfig, directory, analyses=None):
    torch.set_num_threads(1)
    cfg = with_reference(cfg, directory / "outputs")
    splits, method = build.build(cfg)
    context: RunContext = build.context_of(cfg, splits, directory)
    found = Analyses.build(cfg.analysis) if analyses is None else analyses
    return Trainer(directory, cfg.train, context, Silent(), found), method


def without_time(rows):
    return [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in rows]


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
