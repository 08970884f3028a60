"""Hydra's way into spurcor: the classes that its configuration may name."""

from spurcor.launchers.in_process import InProcess
from spurcor.launchers.local_pool import LocalPool
from spurcor.launchers.points import Points
from spurcor.launchers.slurm import Slurm

# Hydra accepts plug-ins under such a name only, and an editable install has no hydra_plugins.
PLUGINS = {
    f"hydra_plugins.spurcor.{plugin.__name__}": plugin
    for plugin in (Points, InProcess, LocalPool, Slurm)
}
