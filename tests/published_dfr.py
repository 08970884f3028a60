"""DFR_Tr^Val as its authors publish it, in plain scikit-learn; knows nothing of spurcor.

Validation is shuffled and halved; the second half, balanced by group and standardised by itself,
is fitted once per C, and the first half chooses C by its worst group. Then 20 balanced subsets of
all of validation, standardised by the training features, are fitted, one call after the other, and
coefficients and intercepts are averaged. The caller's generator draws: the shuffle, then per subset
a permutation of each group, whose first members are kept.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

C_OPTIONS = [1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01]
NUM_RETRAINS = 20


def balanced(g, rng):
    groups = [np.where(g == group)[0] for group in np.unique(g)]
    size = min(map(len, groups))
    return np.concatenate([rng.permutation(group)[:size] for group in groups])


def accuracies(hit, g):
    return np.array([hit[g == group].mean() for group in np.unique(g)])


def logistic(c):
    return LogisticRegression(C=c, l1_ratio=1.0, solver="liblinear", random_state=0)


def tune(x, y, g, rng):
    order = rng.permutation(len(y))
    half = len(y) // 2
    judged, fitted = order[:half], order[half:]
    fitted = fitted[balanced(g[fitted], rng)]
    scaler = StandardScaler().fit(x[fitted])
    x_fitted, x_judged = scaler.transform(x[fitted]), scaler.transform(x[judged])
    worst = []
    for c in C_OPTIONS:
        model = logistic(c).fit(x_fitted, y[fitted])
        worst.append(accuracies(model.predict(x_judged) == y[judged], g[judged]).min())
    return C_OPTIONS[int(np.argmax(worst))]


def dfr_val(train_x, val, test, rng):
    """C and the test accuracy of each group; `val` and `test` are (x, y, g)."""
    x, y, g = val
    c = tune(x, y, g, rng)
    scaler = StandardScaler().fit(train_x)
    x = scaler.transform(x)
    coefs, intercepts = [], []
    for _ in range(NUM_RETRAINS):
        rows = balanced(g, rng)
        model = logistic(c).fit(x[rows], y[rows])
        coefs.append(model.coef_)
        intercepts.append(model.intercept_)
    model.coef_, model.intercept_ = np.mean(coefs, axis=0), np.mean(intercepts, axis=0)
    test_x, test_y, test_g = test
    return c, accuracies(model.predict(scaler.transform(test_x)) == test_y, test_g)


def waterbirds_features(seed=0, num_features=2048, rank=50, noise=1.0):
    """Tables (x, y, g) with Waterbirds' group counts and features of at most `rank` dimensions.

    One hidden direction tells the class and a louder one the background; the spectrum decays.
    """
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(rank, num_features)) / np.sqrt(np.arange(1, rank + 1))[:, None]
    offset = rng.normal(size=num_features)
    counts = {
        "train": (3498, 184, 56, 1057),
        "val": (467, 466, 133, 133),
        "test": (2255, 2255, 642, 642),
    }
    tables = {}
    for name, sizes in counts.items():
        g = rng.permutation(np.repeat(np.arange(4), sizes))
        y, a = g // 2, g % 2
        z = noise * rng.normal(size=(len(g), rank))
        z[:, 0] += 2 * y - 1
        z[:, 1] += 3 * (2 * a - 1)
        z[:, 2] += 0.7 * (2 * y - 1)
        # Networks compute in single precision; the tables of a repair are doubles of that.
        tables[name] = ((z @ mixing + offset).astype(np.float32).astype(np.float64), y, g)
    return tables
