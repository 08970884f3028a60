"""Current paths of classes that saved runs name by the path of their first release.

A run is named by a hash of its configuration, so moving a class must not change its hash. Classes
of the first release are hashed by the path they had then, the keys of `PLACES`, which never change;
the values are their current paths. Later classes are hashed as `<group>.<class>`, wherever they are
defined, and classes of a plug-in as `<group>.<package>.<class>`.
"""

from spurcor.config.packages import plugins

PLACES = {
    "spurcor.analysis.gap_dynamics.GapDynamics": "spurcor.analysis.gap_dynamics.GapDynamics",
    "spurcor.analysis.gradient_basis.GradientBasis": (
        "spurcor.analysis.gradient_basis.GradientBasis"
    ),
    "spurcor.analysis.jacobian_norm.JacobianNorm": "spurcor.analysis.jacobian_norm.JacobianNorm",
    "spurcor.analysis.output_moments.OutputMoments": (
        "spurcor.analysis.output_moments.OutputMoments"
    ),
    "spurcor.analysis.selective.Selective": "spurcor.analysis.selective.Selective",
    "spurcor.analysis.static_dynamic.StaticDynamic": (
        "spurcor.analysis.static_dynamic.StaticDynamic"
    ),
    "spurcor.backbones.cifar_resnet.CifarResNet": "spurcor.backbones.cifar_resnet.CifarResNet",
    "spurcor.backbones.lenet.LeNet": "spurcor.backbones.lenet.LeNet",
    "spurcor.backbones.mlp.Mlp": "spurcor.backbones.mlp.Mlp",
    "spurcor.backbones.resnet.ResNet": "spurcor.backbones.resnet.ResNet",
    "spurcor.backbones.small_cnn.SmallCnn": "spurcor.backbones.small_cnn.SmallCnn",
    "spurcor.backbones.vgg_attention.VggAttention": "spurcor.backbones.vgg_attention.VggAttention",
    "spurcor.backbones.vit.VisionTransformer": "spurcor.backbones.vit.VisionTransformer",
    "spurcor.datasets.biased_mnist.BiasedMnist": "spurcor.datasets.biased_mnist.BiasedMnist",
    "spurcor.datasets.celeba.CelebA": "spurcor.datasets.celeba.CelebA",
    "spurcor.datasets.celeba.CelebAScale": "spurcor.datasets.celeba.CelebAScale",
    "spurcor.datasets.colored_mnist.ColoredMnist": "spurcor.datasets.colored_mnist.ColoredMnist",
    "spurcor.datasets.digits.Digits": "spurcor.datasets.digits.Digits",
    "spurcor.datasets.dominoes.Dominoes": "spurcor.datasets.dominoes.Dominoes",
    "spurcor.datasets.folder.Folder": "spurcor.datasets.folder.Folder",
    "spurcor.datasets.isic.Isic": "spurcor.datasets.isic.Isic",
    "spurcor.datasets.mnist_cues.MnistCues": "spurcor.datasets.mnist_cues.MnistCues",
    "spurcor.datasets.plain.Plain": "spurcor.datasets.plain.Plain",
    "spurcor.datasets.waterbirds.Waterbirds": "spurcor.datasets.waterbirds.Waterbirds",
    "spurcor.dfr.Dfr": "spurcor.repair.dfr.Dfr",
    "spurcor.features.Fixed": "spurcor.data.transforms.Fixed",
    "spurcor.methods.erm.Erm": "spurcor.methods.erm.Erm",
    "spurcor.methods.erm_target.ErmTarget": "spurcor.methods.erm_target.ErmTarget",
    "spurcor.methods.frozen.Frozen": "spurcor.methods.frozen.Frozen",
    "spurcor.methods.group_dro.GroupDro": "spurcor.methods.group_dro.GroupDro",
    "spurcor.methods.iw.ImportanceWeighting": "spurcor.methods.iw.ImportanceWeighting",
    "spurcor.methods.masktune.MaskTune": "spurcor.methods.masktune.MaskTune",
    "spurcor.methods.prusc.Prusc": "spurcor.methods.prusc.Prusc",
    "spurcor.methods.scale.Scale": "spurcor.methods.scale.Scale",
    "spurcor.tracking.mlflow.MlflowTracker": "spurcor.tracking.mlflow.MlflowTracker",
    "spurcor.tracking.tensorboard.TensorboardTracker": (
        "spurcor.tracking.tensorboard.TensorboardTracker"
    ),
    "spurcor.tracking.wandb.WandbTracker": "spurcor.tracking.wandb.WandbTracker",
    "spurcor.transforms.CropFlip": "spurcor.data.transforms.CropFlip",
    "spurcor.transforms.Normalize": "spurcor.data.transforms.Normalize",
    "spurcor.transforms.Photo": "spurcor.data.transforms.Photo",
}
FORMER = {place: former for former, place in PLACES.items()}


def place_of(target: str) -> str:
    """Return the current path of a class named by a configuration of any version."""
    return PLACES.get(target, target)


def hashed_name(target: str, group: str) -> str:
    """Return the name under which a class is hashed; its path if it is from another package."""
    if target in FORMER:
        return FORMER[target]
    package, name = target.partition(".")[0], target.rpartition(".")[2]
    if package in plugins():
        return f"{group}.{package}.{name}"
    return f"{group}.{name}" if package == "spurcor" else target
