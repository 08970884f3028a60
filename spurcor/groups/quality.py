"""How well inferred groups match the annotated ones, without matching their names."""

from typing import Any

import numpy as np
from torch import Tensor

from spurcor.data.groups import GroupSpec


def quality(a: Tensor, true: Tensor | None, y: Tensor, spec: GroupSpec) -> dict[str, Any]:
    """Return figures of inferred attribute values (N,) against the `true` ones, per class.

    The minority of a class is all of it but its most frequent attribute value, inferred as well as
    true. `precision`, `recall` and `f1` are of finding the true minority, and `ami` is the adjusted
    mutual information (0 for values drawn at random), each the mean over the classes in which both
    are defined. `sizes` counts the inferred groups of each class. Without `true` values only those.
    """
    found, labels = a.cpu().numpy(), y.cpu().numpy()
    members = {name: labels == c for c, name in enumerate(spec.classes)}
    sizes = {name: _counts(found[rows], len(spec.attributes)) for name, rows in members.items()}
    figures: dict[str, Any] = {"sizes": sizes}
    if true is None:
        return figures
    known = true.cpu().numpy()
    by_class = {name: _figures(found[rows], known[rows]) for name, rows in members.items()}
    for key in ("precision", "recall", "f1", "ami"):
        values = [value for part in by_class.values() if (value := part[key]) is not None]
        figures[key] = float(np.mean(values)) if values else None
    return {**figures, "classes": by_class}


def _counts(values: "np.ndarray[Any, Any]", number: int) -> list[int]:
    return [int(count) for count in np.bincount(values, minlength=number)]


def _figures(
    found: "np.ndarray[Any, Any]", true: "np.ndarray[Any, Any]"
) -> dict[str, float | None]:
    """Return the figures of one class; None where the class has no such minority."""
    from sklearn.metrics import adjusted_mutual_info_score

    if not len(found):
        return dict.fromkeys(("precision", "recall", "f1", "ami"))
    inferred, minority = _minority(found), _minority(true)
    hits = int((inferred & minority).sum())
    precision = hits / int(inferred.sum()) if inferred.any() else None
    recall = hits / int(minority.sum()) if minority.any() else None
    # 2 hits / (inferred + minority), as defined where one of the two is empty.
    both = int(inferred.sum()) + int(minority.sum())
    mixed = len(np.unique(true)) > 1
    ami = float(adjusted_mutual_info_score(true, found)) if mixed else None
    f1 = 2 * hits / both if both else None
    return {"precision": precision, "recall": recall, "f1": f1, "ami": ami}


def _minority(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    rest: np.ndarray[Any, Any] = values != np.bincount(values).argmax()
    return rest
