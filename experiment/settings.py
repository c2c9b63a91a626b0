"""Every setting in one dataclass: Table 3's values are the defaults; the command line and the rows are made of it.

    config = Config(task="poison", discovery=0.5)          # Table 3's values for ResNet-9, checked
    config = resolve({"dataset": "fashion-mini"})          # the same with the preset of a data set or architecture
"""

from dataclasses import dataclass, field, fields
from functools import partial

from engine.checks import check_settings
from rem_plus import Settings
from tasks import TASKS

EVERY_TASK = (*TASKS, "human")  # the paper's, and that of experiment/corruptions.py
VERSION = "0.7.0"  # of the code: in grid a row or network of another version does not count as done
STAGES = {"task": "task, a cell of the 2-D task space (Sec. 4)", "network": "network (A.3)",
          "training": "training (A.3, Table 3)", "unlearning": "unlearning (A.3, Table 3)", "run": "the run"}


def setting(stage: str, default, text: str, within: str = "", choices: tuple[str, ...] = ()):
    """A field: what it belongs to (of STAGES), its line of help, and its range as an interval, or its choices."""
    return field(default=default, metadata={"stage": stage, "help": text, "within": within, "choices": choices})


of_task, of_network, of_training, of_unlearning, of_run = (partial(setting, stage) for stage in STAGES)


@dataclass(frozen=True)
class Config:
    """One cell of the task space and how to train and unlearn in it; raises as `check_settings` does."""

    task: str = of_task("poison", "corruption by regularity: poison, confusion, random; human: by people",
                        choices=EVERY_TASK)
    n: int = of_task(1000, "corrupted training examples |D_c|; for human it follows from the labels", "[1, inf)")
    trigger: str = of_task("patch", "trigger of poison: patch (the paper's), blended, sinusoidal or warp",
                           choices=("patch", "blended", "sinusoidal", "warp"))
    pair: str | None = of_task(None, "confused classes A,B (default: 3,5 on cifar10, svhn; else the most alike)")
    dataset: str = of_task("fashion-mini", "fashion-mini, fashion-mnist, cifar10, cifar10-small (1,000 training and "
                           "200 test images a class), svhn, imagenette or folder")
    per_class: int | None = of_task(None, "training images of each class that are drawn (default: all)", "[1, inf)")
    per_class_test: int | None = of_task(None, "test images of each class that are drawn (default: all)", "[1, inf)")
    human_column: str = of_task("aggre", "which labels of human: by majority, the worst of three, or of one of three "
                                "people",
                                choices=("aggre", "worse", "random1", "random2", "random3"))
    image_size: int | None = of_task(None, "pixels each way (default: the data set's own)", "[1, inf)")
    seed: int = of_task(0, "seed of everything: task, weights, masks, order", f"[0, {2**63})")

    arch: str = of_network("resnet9", "resnet9 or vit", choices=("resnet9", "vit"))
    width: float = of_network(1.0, "factor of all widths of the 100 % network", "(0, inf)")
    capacity: float = of_network(0.5, "width over that of the 100 % network, Table 4", "(0, 1]")
    patch: int = of_network(8, "ViT: pixels per side of a patch", "[1, inf)")
    dim: int = of_network(512, "ViT: embedding dimension; its 8 heads share it, an MLP has 3 times as much", "[8, inf)")
    depth: int = of_network(4, "ViT: transformer blocks", "[1, 1000]")
    ratio: float | None = of_network(None, "theta_o2's width over theta_o1's (default: 1 / capacity - 1)", "[0, inf)")
    p_mem: float = of_network(Settings.p_mem, "share of theta_o2 that a mask turns on", "[0, 1]")

    etd: bool = of_training(False, "train with example-tied dropout, then unlearn from it")
    epochs: int = of_training(40, "epochs of training, of the original and in retrain; all of them run", "[0, inf)")
    batch: int = of_training(Settings.batch, "batch size, of unlearning too", "[2, 1000000000]")
    optimizer: str = of_training(Settings.optimizer, "sgd or adam", choices=("sgd", "adam"))
    lr: float = of_training(0.025, "peak rate; ends at a fifth", "[0, 1e38]")
    momentum: float = of_training(Settings.momentum, "momentum of SGD", "[0, 1)")
    weight_decay: float = of_training(Settings.weight_decay, "weight decay of SGD", "[0, 1e38]")
    augment: bool = of_training(True, "crop and flip as is usual for the data set")
    precision: str = of_training(Settings.precision, "float32, bf16 or auto: bf16 on GPUs",
                                 choices=("auto", "float32", "bf16"))

    method: str = of_unlearning("no-ul,cf,npo,rem,rem-plus",
                                "methods, separated by commas: names (ssd and cuts are not in the paper), all or "
                                "FILE.py:FUNCTION")
    discovery: float = of_unlearning(0.5, "discovery rate |D_f| / |D_c|, in (0, 1]", "(0, 1]")
    unlearn_epochs: int = of_unlearning(Settings.unlearn_epochs, "max epochs of Alg. 1; epochs of cf, scrub, badt",
                                        "[0, inf)")
    stop: str = of_unlearning("repaired", "REM+, early stopping: repaired (on; after two epochs that are no better) or "
                              "max (off; all epochs run, the last is returned)",
                              choices=("repaired", "max"))
    unlearn_lr: float = of_unlearning(Settings.unlearn_lr, "epsilon of Alg. 1", "[0, 1e38]")
    gamma: float = of_unlearning(Settings.gamma, "step 2 stops once Acc(D_f) <= gamma", "[0, 1]")
    beta: float = of_unlearning(Settings.beta, "beta of Eq. 2", "(0, inf)")
    max_passes: int = of_unlearning(Settings.max_passes, "most passes over D_f in one step 2, then a warning",
                                    "[0, inf)")
    reach: float = of_unlearning(Settings.reach, "REM+, relative distance: how far its first step 2 moves theta_o1, "
                                 "over the norm; 0: off", "[0, inf)")
    farther: int = of_unlearning(Settings.farther, "REM+, restart: how often it starts over with twice the distance, "
                                 "where its first epoch leaves what was memorised; 0: off", "[0, inf)")
    disbelieved: float = of_unlearning(Settings.disbelieved, "REM+, small-loss selection: CE of a given label above "
                                       "which step 3 leaves an image of D_r out, from epoch 2 on; 0: off", "[0, inf)")
    remove_weight: str = of_unlearning(Settings.remove_weight, "weight of 3.2: D_f's natural share of the batch, or "
                                       "the mean over D_f that Eq. 2 prints", choices=("share", "mean"))
    forget_norm: str = of_unlearning(Settings.forget_norm, "statistics in passes over D_f of rem, npo, ascent; auto: "
                                     "running in rem, rem-plus", choices=("auto", "running", "batch"))
    alpha: float = of_unlearning(0.01, "SCRUB: weight of distillation (A.3)", "[0, inf)")
    ssd_alpha: float = of_unlearning(100.0, "SSD (not in the paper): dampen where D_f's importance is above this times "
                                     "D_tr's", "[0, inf)")
    schedule: str = of_unlearning("linear", "rate of cf, scrub, badt: linear (up, down to a fifth) or constant",
                                  choices=("linear", "constant"))
    step31: bool = of_unlearning(True, "3.1 of Alg. 1; off: Table 2")
    step32: bool = of_unlearning(True, "3.2 of Alg. 1; off: Table 2")
    redirect: str = of_unlearning("npo", "3.1's loss: npo (Eq. 2) or ce (ablation)", choices=("npo", "ce"))
    curve: bool = of_unlearning(False, "note Fig. 5's points")

    data_dir: str = of_run("data", "of the data set; folder: DIR/{train,test|val}/<class>/*")
    human_labels: str | None = of_run(None, "file of human: CIFAR-10N's .pt, .npy or .csv")
    download: bool = of_run(False, "fetch a missing data set")
    device: str = of_run("auto", "cpu, cuda, cuda:1 or auto: a GPU if any")
    out: str = of_run("runs/cells.jsonl", "result file, a JSON line per cell is appended")
    quiet: bool = of_run(False, "print the table only")

    def __post_init__(self):
        check_settings(self, {f.name: f.metadata["choices"] or f.metadata["within"] for f in fields(self)})

    @property
    def extra_ratio(self) -> float:
        """theta_o2's width over theta_o1's: `ratio`, else what is left of the 100 % network (A.3), to within rounding
        of each layer's channels."""
        return 1 / self.capacity - 1 if self.ratio is None else self.ratio


def names_of(stage: str) -> set[str]:
    """The fields of Config that belong to a stage."""
    return {f.name for f in fields(Config) if f.metadata["stage"] == stage}


AFTER_TRAINING = names_of("unlearning")  # an original network does not depend on these
OF_THE_RUN = names_of("run")  # neither an original network nor a cell depends on these


# Settings that a data set or an architecture changes unless the command line names them.
# Choice: fashion-mini is small, so that the first command of the README takes 40 to 100 s on two CPU cores. Its 100 %
# network is ResNet-9 at half width; epochs, batch and rate of training were chosen on other images of its training set.
# The paper's proportions are kept: 2 % corrupted (1,000 of 50,000), one fifth of the peak rate (0.005 of 0.025) for a
# quarter of the epochs (10 of 40).
ARCH_PRESETS = {"vit": dict(optimizer="adam", lr=1e-4, batch=2048, unlearn_lr=2e-5,  # Table 3
                            reach=0.02)}  # Choice: at 0.07 ten epochs of a small one on fashion-mini do not mend it
DATASET_PRESETS = {
    "fashion-mini": dict(n=120, width=0.5, epochs=12, batch=256, lr=0.05, unlearn_epochs=3, unlearn_lr=0.01),
    # A fifth of CIFAR-10: 2 % corrupted, and its 100 % network is ResNet-9 at half width. Epochs, batch and no
    # augmentation were chosen so that the untouched network fits nearly all wrong labels (results/cifar10-jpeg-small).
    "cifar10-small": dict(per_class=1000, per_class_test=200, n=200, width=0.5, epochs=20, batch=128, augment=False,
                          unlearn_epochs=5),
    "imagenette": dict(n=100),  # A.7
}


# Choice: a ViT for two CPU cores. Its patches are a quarter of the image's side, as at 32 pixels; the rate falls to a
# fifth in a quarter of the epochs, as in Table 3.
BOTH_PRESETS = {("fashion-mini", "vit"): dict(patch=4, dim=64, width=1.0, epochs=40, batch=128, lr=1e-3,
                                              unlearn_epochs=10, unlearn_lr=2e-4)}


def resolve(given: dict) -> Config:
    """Defaults, then the presets of the data set, the architecture and both together, then what was given.

    Args: given: field names of Config to values.
    Raises: ValueError, TypeError for an unknown setting, or as `check_settings`.
    """
    known = {f.name for f in fields(Config)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"unknown setting {unknown[0]!r}; choose from {', '.join(sorted(known))}")
    dataset, arch = given.get("dataset", Config.dataset), given.get("arch", Config.arch)
    presets = DATASET_PRESETS.get(dataset, {}), ARCH_PRESETS.get(arch, {}), BOTH_PRESETS.get((dataset, arch), {})
    return Config(**{name: value for preset in (*presets, given) for name, value in preset.items()})
