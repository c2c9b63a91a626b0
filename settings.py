"""Every setting in one dataclass: Table 3's values are the defaults, the command line and the result rows are made of it.

    config = Config(task="poison", discovery=0.5)          # the paper's settings for ResNet-9
    config = resolve({"dataset": "fashion-mini"})          # the same with the preset of a data set or architecture
    generator = stream(config.seed, "order")               # independent random numbers for each purpose
"""

import hashlib
from dataclasses import dataclass, field, fields

import torch

TASKS = ("poison", "confusion", "random")


def setting(default, text: str, **more):
    """A dataclass field with the line of help that the command line shows."""
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class Config:
    """One cell of the task space and how to train and unlearn in it; `check` refuses values that make no sense."""

    # the cell: data set, position in the 2-D task space, network (Sec. 4)
    task: str = setting("poison", "regularity of the corruption: poison (high), confusion (medium), random (low)", choices=TASKS)
    discovery: float = setting(0.5, "discovery rate |D_f| / |D_c|, in (0, 1]")
    method: str = setting("no-ul,cf,npo,rem", "methods to compare, separated by commas: names, all or FILE.py:FUNCTION")
    dataset: str = setting("fashion-mini", "data set: fashion-mini, fashion-mnist, cifar10, svhn, imagenette or folder")
    data_dir: str = setting("data", "where the data set lies; for folder: DIR/{train,test|val}/<class>/*")
    download: bool = setting(False, "let torchvision download a missing data set")
    image_size: int | None = setting(None, "height and width in pixels (default: the data set's own)")
    n: int = setting(1000, "number of corrupted training examples |D_c|")
    pair: str | None = setting(None, "the two classes of confusion, as A,B (default: 3,5 on cifar10 and svhn, else the two "
                                     "whose mean images are closest)")
    arch: str = setting("resnet9", "architecture: resnet9 or vit", choices=("resnet9", "vit"))
    width: float = setting(1.0, "factor of all widths of the 100 % network")
    capacity: float = setting(0.5, "width of the network over that of the 100 % network (Table 4)")
    ratio: float | None = setting(None, "theta_o2's width over theta_o1's (default: 1 / capacity - 1, the rest of the 100 % network)")
    etd: bool = setting(False, "train the network with example-tied dropout, then unlearn from it")

    # training (A.3, Table 3)
    epochs: int = setting(40, "training epochs")
    batch: int = setting(512, "batch size, in training and in unlearning")
    optimizer: str = setting("sgd", "optimiser: sgd or adam", choices=("sgd", "adam"))
    lr: float = setting(0.025, "peak training rate; ends at one fifth of it")
    momentum: float = setting(0.9, "momentum of SGD")
    weight_decay: float = setting(5e-4, "weight decay of SGD")

    # unlearning (A.3, Table 3)
    unlearn_epochs: int = setting(10, "unlearning epochs (max epochs of Alg. 1)")
    unlearn_lr: float = setting(0.005, "unlearning rate (epsilon of Alg. 1)")
    gamma: float = setting(0.2, "step 2 stops once Acc(D_f) <= gamma")
    beta: float = setting(1.0, "beta of Eq. 2")
    p_mem: float = setting(0.2, "share of theta_o2 that an example's mask turns on")
    max_passes: int = setting(100, "most passes over D_f in one step 2, then a warning")
    forget_norm: str = setting("auto", "BatchNorm in passes over D_f of REM's step 2, NPO and Ascent: running statistics, those of each "
                                       "batch, or auto: running in REM, batch in the others", choices=("auto", "running", "batch"))
    alpha: float = setting(0.01, "SCRUB: weight of distillation from the original; 0.001, 0.01, 0.1 and 10 in A.3")
    step31: bool = setting(True, "redirect term of step 3 (Alg. 1, 3.1); off for Table 2")
    step32: bool = setting(True, "removal term of step 3 (Alg. 1, 3.2); off for Table 2")
    redirect: str = setting("npo", "loss of the redirect term: npo (Eq. 2) or ce, plain cross-entropy, as an ablation",
                            choices=("npo", "ce"))

    # the run
    seed: int = setting(0, "seed of everything: task, discovery, weights, masks, order")
    device: str = setting("auto", "cpu, cuda, cuda:1, ... or auto: a GPU where there is one")
    precision: str = setting("auto", "auto: bf16 autocast on GPUs, float32 on the CPU; or float32, bf16",
                             choices=("auto", "float32", "bf16"))
    curve: bool = setting(False, "note the redirection after each epoch of REM (Fig. 5)")
    out: str = setting("runs/cells.jsonl", "result file, one JSON line a cell is appended")
    quiet: bool = setting(False, "print the table only")

    @property
    def extra_ratio(self) -> float:
        """theta_o2's width over theta_o1's: `ratio`, else what is left of the 100 % network (A.3)."""
        return 1 / self.capacity - 1 if self.ratio is None else self.ratio


# Settings that a data set or an architecture changes unless the command line names them.
# Choice: fashion-mini is small, so that the main job takes half a minute on two CPU cores. Its 100 % network is ResNet-9 at
# half width; epochs, batch and rate of training were chosen on other images of Fashion-MNIST's training set. The paper's
# proportions are kept: 2 % corrupted (1,000 of 50,000), one fifth of the peak rate (0.005 of 0.025) for a quarter of the
# epochs (10 of 40).
ARCH_PRESETS = {
    "vit": dict(optimizer="adam", lr=1e-4, batch=2048, unlearn_lr=2e-5),  # Table 3
}
DATASET_PRESETS = {
    "fashion-mini": dict(n=120, width=0.5, epochs=8, batch=256, lr=0.05, unlearn_epochs=2, unlearn_lr=0.01),
    "imagenette": dict(n=100),  # A.7
}


def resolve(given: dict) -> Config:
    """Defaults, then the presets of the data set and the architecture, then what was given.

    Args:
        given: field names of Config to values.

    Returns:
        A checked Config.

    Raises:
        ValueError: an unknown setting or a value out of range.
    """
    known = {f.name for f in fields(Config)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"unknown setting {unknown[0]!r}; choose from {', '.join(sorted(known))}")
    dataset, arch = given.get("dataset", Config.dataset), given.get("arch", Config.arch)
    config = Config(**{**DATASET_PRESETS.get(dataset, {}), **ARCH_PRESETS.get(arch, {}), **given})
    check(config)
    return config


def check(config: Config) -> None:
    """Raise a ValueError that names the first setting out of its range."""
    ranges = {
        "discovery": (0 < config.discovery <= 1, "a rate in (0, 1]"),
        "n": (config.n >= 1, "at least 1"),
        "width": (0 < config.width < float("inf"), "a factor above 0"),
        "capacity": (0 < config.capacity <= 1, "a share in (0, 1]"),
        "ratio": (config.ratio is None or 0 <= config.ratio < float("inf"), "at least 0"),
        "epochs": (config.epochs >= 0, "at least 0"),
        "unlearn_epochs": (config.unlearn_epochs >= 0, "at least 0"),
        "batch": (config.batch >= 2, "at least 2"),
        "lr": (0 <= config.lr < float("inf"), "a rate of at least 0"),
        "unlearn_lr": (0 <= config.unlearn_lr < float("inf"), "a rate of at least 0"),
        "momentum": (0 <= config.momentum < 1, "in [0, 1)"),
        "weight_decay": (0 <= config.weight_decay < float("inf"), "at least 0"),
        "gamma": (0 <= config.gamma <= 1, "an accuracy in [0, 1]"),
        "beta": (0 < config.beta < float("inf"), "above 0"),
        "p_mem": (0 <= config.p_mem <= 1, "a probability in [0, 1]"),
        "max_passes": (config.max_passes >= 0, "at least 0"),
        "alpha": (0 <= config.alpha < float("inf"), "at least 0"),
        "seed": (0 <= config.seed < 2**63, "a whole number of at least 0"),
    }
    for name, (good, wanted) in ranges.items():
        if not good:
            raise ValueError(f"{name.replace('_', '-')} is {getattr(config, name)}; it must be {wanted}")
    for f in fields(Config):
        choices = f.metadata.get("choices")
        if choices and getattr(config, f.name) not in choices:
            raise ValueError(f"{f.name} is {getattr(config, f.name)!r}; choose from {', '.join(choices)}")


def stream(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose, so that a draw for one thing never shifts the draws for another.

    Args:
        seed: of the run, >= 0.
        purpose: a name such as "weights" or "task"; other names give unrelated numbers.
    """
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # manual_seed takes 63 bits
