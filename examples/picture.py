"""The picture of the README: triggered images, and what the network says of them before and after each method.

    python examples/picture.py --out results/picture     # the main job at seed 0, then picture.png and picture.svg

The images are the first three, in the order of the data, that no method was told of and that the network, before
unlearning, sends to the trigger's class although they are of another one. Nothing else is chosen.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this file's own folder

from engine.modes import eval_mode  # noqa: E402
from engine.streams import stream  # noqa: E402
from experiment.cell import corrupt, draw_forget, new_model, train_original  # noqa: E402
from experiment.console import told_in_a_line  # noqa: E402
from experiment.datasets import load  # noqa: E402
from experiment.methods import METHODS  # noqa: E402
from experiment.settings import resolve  # noqa: E402
from metrics import predict  # noqa: E402
from study.canvas import import_figure, save  # noqa: E402
from tasks import TARGET  # noqa: E402

SHOWN = (("no-ul", "before"), ("cf", "fine-tuning"), ("npo", "NPO"), ("rem", "REM"))  # methods and their titles
IMAGES = 3
RIGHT, WRONG = "#009E73", "#D55E00"  # Okabe and Ito's green and red


@torch.no_grad()
def probabilities(net, data, index: torch.Tensor) -> torch.Tensor:
    """(k, classes) probabilities of the images of `index` as they were trained on."""
    with eval_mode(net):
        ((_, x, _),) = data.batches(index)
        return net(x).softmax(dim=1).cpu()


def run(config):
    """The main job: the task, the first undiscovered misled images, and each method's network by its title."""
    dataset = load(config.dataset)
    task = corrupt(config, dataset)
    forget = draw_forget(config, task)
    original = train_original(config, task, new_model(config, dataset))
    networks = {title: METHODS[name].function(original, task.train, forget, config, stream(config.seed, "unlearning"))
                for name, title in SHOWN}
    hidden = task.corrupted[~torch.isin(task.corrupted, forget)]
    misled = (predict(original, task.train, hidden) == TARGET) & (task.clean[hidden] != TARGET)
    return dataset, task, hidden[misled][:IMAGES], networks


def draw(dataset, task, index: torch.Tensor, networks: dict):
    """A row per image: the image and its true class, then what each network says, right in green, wrong in red."""
    figure = import_figure()(figsize=(2.0 + 1.9 * len(networks), 1.45 * len(index) + 0.4), layout="constrained")
    axes = figure.subplots(len(index), 1 + len(networks), squeeze=False)
    said = {title: probabilities(net, task.train, index) for title, net in networks.items()}
    for row, i in enumerate(index.tolist()):
        true = int(task.clean[i])
        axes[row, 0].imshow(task.train.images[i, 0], cmap="gray", vmin=0, vmax=255)
        axes[row, 0].set_xticks([])
        axes[row, 0].set_yticks([])
        axes[row, 0].set_ylabel(dataset.names[true], fontsize=10, color=RIGHT)
        if row == 0:
            axes[row, 0].set_title("image, true class", fontsize=10)
        for column, (title, p) in enumerate(said.items(), 1):
            best = p[row].topk(3)
            names = [dataset.names[k] for k in best.indices.tolist()]
            colours = [RIGHT if k == true else WRONG if k == TARGET else "#999999" for k in best.indices.tolist()]
            here = axes[row, column]
            here.barh(range(3), best.values.tolist(), color=colours)
            here.set_xlim(0, 1)
            here.set_ylim(2.6, -0.6)
            here.set_yticks([])
            here.set_xticks([])
            for place, name in enumerate(names):
                here.text(0.03, place, name, fontsize=8, va="center")
            if row == 0:
                here.set_title(title, fontsize=10)
    return figure


def main() -> None:
    """Run the job and write the picture."""
    parser = argparse.ArgumentParser(description="Draw the picture of the README.")
    parser.add_argument("--out", default="results/picture", help="folder (default: %(default)s)")
    args = parser.parse_args()
    import_figure()  # whether matplotlib is there is told before any work
    save(args.out, "picture", draw(*run(resolve({"task": "poison", "discovery": 0.5, "device": "cpu"}))))
    print(f"{args.out}/picture.png")


if __name__ == "__main__":
    sys.exit(told_in_a_line(main))
