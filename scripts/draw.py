"""Draw the points of a random search, to be pasted into a sweep file.

python scripts/draw.py 8 --seed 0 optimizer.lr=log:1e-4:1e-2 train.batch_size=32,64,128

A value is a list to choose from, `log:<low>:<high>` or `uniform:<low>:<high>`; three digits are
kept, and no point is drawn twice. The list, not the seed, is what a sweep file holds: it is the
same in every version of numpy.
"""

import argparse

import numpy as np


def draw(space: str, generator: np.random.Generator) -> str:
    """One value of a space."""
    kind, _, bounds = space.partition(":")
    if kind not in ("log", "uniform"):
        return str(generator.choice(space.split(",")))
    low, high = (float(bound) for bound in bounds.split(":"))
    if kind == "uniform":
        return f"{generator.uniform(low, high):.3g}"
    return f"{np.exp(generator.uniform(np.log(low), np.log(high))):.3g}"


def main() -> None:
    """Print the points as YAML."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int)
    parser.add_argument("spaces", nargs="+", metavar="key=space")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    spaces = dict(space.split("=", 1) for space in options.spaces)
    points: dict[str, None] = {}
    for _ in range(100 * options.count):  # a point that was drawn before is drawn again
        point = " ".join(f"{key}={draw(space, generator)}" for key, space in spaces.items())
        points.setdefault(point)
        if len(points) == options.count:
            break
    else:
        parser.error(f"there are fewer than {options.count} points to draw")
    print("points:")
    for point in points:
        print(f"  - {point}")


if __name__ == "__main__":
    main()
