"""The launchers and sweepers that Hydra's configuration may name."""

from spurcor.launchers.in_process import InProcess
from spurcor.launchers.local_pool import LocalPool
from spurcor.launchers.points import Points
from spurcor.launchers.search import Optuna
from spurcor.launchers.slurm import Slurm

# Hydra accepts plug-ins only under hydra_plugins, a package that an editable install lacks.
PLUGINS = {
    f"hydra_plugins.spurcor.{plugin.__name__}": plugin
    for plugin in (Points, Optuna, InProcess, LocalPool, Slurm)
}
