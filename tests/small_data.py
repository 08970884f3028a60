"""A data root with a small copy of every data set, each in its real format."""

import generators
import generators_photos as photos
import numpy as np

COUNTS = {0: (12, 6, 5, 9), 1: (6, 6, 6, 6), 2: (6, 6, 6, 6)}
# What makes a data set as small as its copy; a new one in conf/dataset needs a line here.
OPTIONS = {
    "digits": (),
    "mnist_cues": ("dataset.target_per_class=6", "dataset.val_per_class=4"),
    "biased_mnist": ("dataset.val_size=200",),
    "colored_mnist": (
        "dataset.train_size=200",
        "dataset.test_size=80",
        "dataset.val_size=40",
        "dataset.target_size=20",
    ),
    "dominoes": ("dataset.pool_size=100",),
    "dominoes_cars": ("dataset.pool_size=20",),
    "dominoes_fashion": ("dataset.pool_size=20",),
    "cifar10": ("dataset.val_size=100",),
    "fashion_mnist": ("dataset.val_size=100",),
    "waterbirds": (),
    "celeba": (),
    "celeba_scale": ("dataset.target_size=8", "dataset.majority_size=2"),
    "celeba_attributes": (),
    "isic": (),
    "ham10000": (),
    "folder": (),
    "embeddings": (),
}


def write_all(root):
    """Every data set's files under one root."""
    rng = np.random.default_rng(0)
    generators.write_mnist(root, rng, ink=0.3)
    generators.write_mnist(root, rng, "FashionMNIST", compressed=True)
    generators.write_folders(root, rng)
    rows = photos.make_rows(COUNTS)
    photos.put(root / "waterbirds_v1.0", photos.waterbirds(rows))
    photos.put(root / "celeba", {**photos.faces(rows), **photos.celeba_csv(rows)})
    photos.put(root / "isic", photos.isic(rows))
    photos.put(root / "ham10000", photos.ham10000(rows))
    lines = [(f"{r.index}.jpg", photos.NAMES[r.split], r.y, r.a) for r in rows]
    images = {f"{r.index}.jpg": photos.jpeg(r.index, (40 + r.index % 7, 44)) for r in rows}
    table = photos.csv("filename,split,y,a", lines)
    photos.put(root / "folder", {"metadata.csv": table, **images})
    write_embeddings(root / "embeddings" / "features.npz", rows)


def write_embeddings(path, rows, dim=6, **changed):
    """Features whose first two tell class and attribute, in numpy's format; None leaves one out."""
    rng = np.random.default_rng(0)
    y, a = (np.array([getattr(row, name) for row in rows]) for name in ("y", "a"))
    features = rng.normal(size=(len(rows), dim)).astype("float32")
    features[:, 0] += 2 * y
    features[:, 1] += 4 * a
    arrays = {
        "features": features,
        "y": np.array(["cat", "dog"])[y],
        "a": np.array(["day", "night"])[a],
        "split": np.array([photos.NAMES[row.split] for row in rows]),
        **changed,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: values for name, values in arrays.items() if values is not None}
    np.savez(path, **arrays)
    return arrays
