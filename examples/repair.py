"""Repair a classifier from Python: 120 of 6,000 images have a trigger and a wrong label, and half of those are known.

    python examples/repair.py          # trains, repairs, prints the scores of both networks; some minutes on two cores
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's own folder

from engine.streams import stream  # noqa: E402
from experiment.cell import new_model  # noqa: E402
from experiment.datasets import load  # noqa: E402
from experiment.settings import resolve  # noqa: E402
from metrics import evaluate  # noqa: E402
from repair import repair  # noqa: E402
from tasks import discover, make_task  # noqa: E402
from train import fit  # noqa: E402


def main(**settings) -> int:
    """Train on poisoned fashion-mini, repair, and print what changed; settings: of Config, such as epochs=2."""
    config = resolve({"task": "poison", **settings})
    dataset = load("fashion-mini")
    task = make_task("poison", dataset, config.n, config.seed)
    known = discover(task, 0.5, config.seed)  # (60,) int64: the bad images that somebody has found

    model = new_model(config, dataset)
    fit(model, task.train, None, config, stream(config.seed, "training"))

    # What you need: your network, its training images with their labels as they are, and the indices of bad ones.
    # `heldout` need not be given, but shows best what a repair costs.
    repaired = repair(model, task.train, known, heldout=task.test, unlearn_epochs=3, say=print)
    print(repaired.verdict.line())

    for name, network in (("before", model), ("after", repaired.network)):
        scores = evaluate(network, task, known)  # true labels are known here, and read by nothing else
        print(f"{name:<7} accuracy {100 * scores['utility']:5.1f} %, attack success rate "
              f"{100 * scores['misled']:5.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
