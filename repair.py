"""Repair a trained classifier from a folder of images and a list of some bad ones, by REM (Sec. 5).

    python run.py repair --data DIR --model resnet18 --checkpoint model.pt --bad bad.txt --out repaired.pt

    repaired = repair(model, data, forget)            # any network, data.Data, (k,) indices; a plain network comes back
"""

import argparse
import contextlib
import copy
import fnmatch
import functools
import json
import math
import time
from dataclasses import asdict, fields, replace
from importlib.metadata import version

import torch
from torch import nn
from torch.nn import functional as F

from formats import checkpoints
from formats.fitting import check_logits, look_first, memory_format_of, predicted, share_of
from formats.images import room_for_images
from formats.inputs import Folder, open_folder
from formats.networks import build_network, reason_of
from formats.outputs import beside_weights, check_apart, check_replaced, digest, repair_key, resume
from formats.sheets import beside, write_suspects
from data import Data, Streamed
from etd import Expanded, eval_mode, over_ranks, ranks
from expand import expand
from experiment import choose_device, provenance, save_state
from rem import Settings, check_forget, go_on, start
from settings import Config, stream
from suspects import features, probe, suspects
from tasks import write_whole

FAMILIES = ("*mlp.0", "*mlp.fc1", "*block.3", "*denselayer*.conv1", "*branch2.0", "*squeeze",
            "*branch[23].0.conv")  # inner layers of blocks
FLAGS = ("batch", "optimizer", "unlearn_lr", "unlearn_epochs", "ratio", "seed")  # settings that have a flag
READ = (*FLAGS, "stop", "momentum", "weight_decay", "gamma", "beta", "p_mem", "max_passes", "precision")  # of Config
EPOCH = ("epoch {}/{}: {updates} updates of step 2, Acc(D_f) {acc_forget_before:.2f} to {acc_forget:.2f}; loss of "
         "step 3 {loss:.3f}, Acc(watched) {acc_watched:.2f}; {:.0f} s, at most {:.0f} s left")


# --- In Python --------------------------------------------------------------------------------------------------------

def repair(model: nn.Module, data: Data | Streamed, forget: torch.Tensor, *, layers=None, say=None, keep=None,
           every: int = 1, sync_batchnorm: bool = False, **settings) -> nn.Module:
    """A repaired copy of a trained classifier: REM from some known bad examples, the others unknown.

    Args:
        model: any network that `expand` takes, also inside DataParallel or compiled; left as it is.
        data: all training images, labels as the network was trained on them, in memory or Streamed.
        forget: (k,) int64 indices of the known bad ones; neither empty nor all.
        layers: names or patterns (`*.mlp.0`) of the layers that get theta_o2; None: chosen by `expand_any`.
        say: called with a line of text about each choice and each epoch; None: silent.
        keep: file for the state after each `every` epochs, from which the same call goes on; None, every=0: no state.
        sync_batchnorm: of several processes, batch statistics are those of the whole batch; needs GPUs.
        settings: of settings.Config, over the defaults of `choose_settings`, such as unlearn_epochs=2 or seed=1.
    Returns: a plain network of the keys, shapes and dtypes of `model`, in its modes.
    Raises: ValueError: forget, or a setting, cannot be used; TypeError: no choice of layers can be expanded;
        NonFiniteLoss: the rate is too high.
    """
    say = say or (lambda text: None)
    model, forget = unwrapped(model), check_forget(forget, len(data))
    data = replace(data, memory_format=memory_format_of(model, data))
    config, reasons = choose_settings(model, len(data), settings, too_sure(model, data, forget))
    for line in reasons:
        say(line)
    weight = next(model.parameters())
    example = torch.zeros((2, *data.shape), device=weight.device)
    expanded = expand_any(model, example, config, layers, say)
    if sync_batchnorm:
        expanded = synchronised(expanded)
    state = start(expanded, data, forget, config, stream(config.seed, "repair"))
    key = keep and repair_key(model, data, forget, config, layers)
    if keep and (line := resume(state, keep, key)):
        say(line)
    begin, done = time.perf_counter(), state.epoch  # epochs of an earlier run

    def log(epoch: int, epochs: int, net, **record) -> None:
        spent = time.perf_counter() - begin
        left, record = spent / (epoch - done) * (epochs - epoch), dict(loss=math.nan, acc_watched=math.nan) | record
        say(EPOCH.format(epoch, epochs, spent, left, **record))
        if keep and every and epoch % every == 0 and ranks()[0] == 0:
            try:
                save_state(state, keep, key=key)
            except OSError as error:  # a full disk costs no repair
                say(f"the state of epoch {epoch} could not be written to {keep} ({error})")

    repaired = go_on(state, log)
    if not sync_batchnorm:
        return repaired
    plain = copy.deepcopy(model)  # whose BatchNorms are of their own kind
    plain.load_state_dict(repaired.state_dict())
    return plain


def synchronised(expanded: Expanded) -> Expanded:
    """The network with every BatchNorm a SyncBatchNorm; TypeError for one that is more than a BatchNorm."""
    plain = (nn.BatchNorm1d, nn.BatchNorm2d)
    for name, module in expanded.named_modules():
        if isinstance(module, plain) and type(module) not in plain:
            raise TypeError(f"cannot synchronise {name!r}: {type(module).__name__} computes more than a BatchNorm")
    if ranks()[1] > 1 and next(expanded.parameters()).device.type == "cpu":
        raise ValueError("--sync-batchnorm needs GPUs: torch has no SyncBatchNorm on the CPU; leave it out")
    return nn.SyncBatchNorm.convert_sync_batchnorm(expanded)


@torch.no_grad()
def too_sure(model: nn.Module, data: Data | Streamed, forget: torch.Tensor) -> bool:
    """Whether D_f has next to no gradient, which is about as large as its cross-entropy at the labels as given.

    Choice: a mean below 1e-6. At 2e-4 SGD needed 18 updates of step 2, at 5e-10 and 3e-9 a hundred moved nothing.
    """
    weight = next(model.parameters())
    total = torch.zeros(2, dtype=torch.float64, device=weight.device)  # sum and number
    with eval_mode(model):
        for _, x, y in data.batches(forget, size=32, dtype=weight.dtype):
            logits = model(x.to(weight.device)).double()  # (B, classes)
            ce = F.cross_entropy(logits, y.to(weight.device), reduction="none")
            total += torch.stack([ce.sum(), ce.new_tensor(len(ce))])
    over_ranks([total])
    return float(total[0] / total[1]) < 1e-6


def choose_settings(model: nn.Module, n: int, given: dict, sure: bool = False) -> tuple[Config, list[str]]:
    """Batch, optimiser, its rate and epochs for n training images, and the reason for each; what is given stays.

    Choice: gamma 0.05, below chance for few classes, though Sec. 5 wants it above: of few known images nearly
    all have to change, or the pattern that they share stays.
    """
    batch = min(512, max(16, 2 ** round(math.log2(max(1, n) / 20))))
    norm = any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model.modules())
    why = f"the network has {'' if norm else 'no '}BatchNorm; Table 3"
    optimizer = "sgd" if norm else "adam"
    if sure and norm:
        optimizer, why = "adam", "so sure of the known bad that their gradient is next to nothing, which Adam rescales"
    sgd = given.get("optimizer", optimizer) == "sgd"
    chosen = {"batch": (batch, f"{-(-n // batch)} steps per epoch on {n} images; from 16 to the paper's 512"),
              "optimizer": (optimizer, why),
              "unlearn_lr": (0.004, "near Table 3's") if sgd else (1e-4, "Table 3's rate of training; few steps"),
              "unlearn_epochs": (4, "at most: REM ends when the repair is done"),
              "gamma": (0.05, "few are known, so nearly all of them are removed"),
              "ratio": (0.25, "theta_o2 as wide as a quarter of the network")}
    read = {*READ, *(f.name for f in fields(Settings))}
    if idle := [f.name for f in fields(Config) if f.name in given and f.name not in read]:
        hint = {"epochs": "unlearn_epochs", "lr": "unlearn_lr"}.get(idle[0], ", ".join(READ))
        raise ValueError(f"a repair reads no {idle[0]}; give {hint}")
    config = Config(**{**{name: value for name, (value, _) in chosen.items()}, **given})
    return config, [f"{name} {value} ({reason})" for name, (value, reason) in chosen.items() if name not in given]


def expand_any(model: nn.Module, example: torch.Tensor, config: Config, layers, say) -> Expanded:
    """`expand` with the given layers, or with the first choice that its self-check accepts."""
    names = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if layers is not None:
        chosen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in layers)]
        if unused := [pattern for pattern in layers if not fnmatch.filter(names, pattern)]:
            raise ValueError(f"no layer is called {unused[0]!r}; the network has {', '.join(names)}")
        return expand(model, example, config.extra_ratio, chosen, stream(config.seed, "theta_o2"))
    refusals = []
    for what, chosen in layer_choices(model, names, example):
        try:
            expanded = expand(model, example, config.extra_ratio, chosen, stream(config.seed, "theta_o2"))
        except TypeError as error:
            refusals.append(str(error))
            continue
        grown = [name for name, m in expanded.layers().items() if getattr(m, "to_extra", None) is not None]
        say(f"theta_o2 beside {what} ({len(grown)} layers)")
        return expanded
    raise TypeError(f"{refusals[0]}; {len(refusals) - 1} other choices of layers were refused too: try --layers")


def layer_choices(model: nn.Module, names: list[str], example: torch.Tensor):
    """Choices of layers to try in turn: (words, names); None leaves the choice to `expand`."""
    yield "the layers of its own choice" if hasattr(model, "expandable") else "all convolutions", None
    modules, order = dict(model.named_modules()), running_order(model, names, example)
    convolutions = [name for name in order if isinstance(modules[name], nn.Conv2d)]
    grouped = {name for name in convolutions if 1 < modules[name].groups < modules[name].in_channels}
    feeding = {before for before, name in zip(order, order[1:]) if name in grouped}
    gates = {name for name in convolutions if "se" in name.split(".")}  # squeeze-and-excitation scales what feeds it
    left = [name for name in convolutions if name not in grouped | feeding | gates | set(order[-1:])]
    if left and len(left) < len(convolutions):
        yield "all convolutions but grouped ones, those that feed them and the one that makes the logits", left
    for pattern in FAMILIES:
        if inner := [name for name in order[:-1] if fnmatch.fnmatchcase(name, pattern)]:
            yield f"the inner layers {pattern}, where healing is less tried", inner


def running_order(model: nn.Module, names: list[str], example: torch.Tensor) -> list[str]:
    """The layers that run, in their order."""
    order, modules = [], dict(model.named_modules())
    with eval_mode(model), torch.no_grad(), contextlib.ExitStack() as hooks:
        for name in names:
            hooks.enter_context(modules[name].register_forward_pre_hook(lambda m, x, name=name: order.append(name)))
        model(example.to(next(model.parameters()).dtype))
    return list(dict.fromkeys(order))


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


# --- The command ------------------------------------------------------------------------------------------------------

def add_arguments(p: argparse.ArgumentParser) -> None:
    """The flags, under timm's names where it has one."""
    p.add_argument("--data", required=True, help="folder of train/<class>/* and, held out, test/ or val/<class>/*")
    p.add_argument("--model", required=True, help="resnet9, vit, torchvision's name, timm:NAME or FILE.py:FUNCTION")
    p.add_argument("--checkpoint", required=True, help="the trained weights: .pt, .pth, .bin, .ckpt or .safetensors")
    p.add_argument("--bad", required=True, nargs="+", metavar="LIST",
                   help="known bad images: paths, or indices in the order of the folders' and files' names, in "
                        ".txt, .csv, .json or .npy; lists together, such as the first one and suspects.csv with true "
                        "in a column `bad`")
    p.add_argument("--out", required=True,
                   help="file of the repaired weights; a report (.json), suspects.csv and suspects.png go beside it")
    p.add_argument("--ema", action="store_true", help="repair the averaged weights of the checkpoint")
    p.add_argument("--clean", help="CSV of true labels, which the report alone reads: a path and a label column")
    p.add_argument("--class-map", help="text file of one class per line in the network's order (default: "
                   "the folders' names, sorted as strings)")
    p.add_argument("--image-size", type=int, help="pixels per side (default: the architecture's usual; resnet9, vit "
                   "and FILE.py have none)")
    p.add_argument("--crop-pct", type=float, help="crop over resized side (default: usual; with --image-size: 1)")
    usual = ("per channel, in [0, 1] (default: the architecture's usual; resnet9, vit: that of the training images; "
             "FILE.py: ImageNet's)")
    p.add_argument("--mean", type=float, nargs="+", help=usual)
    p.add_argument("--std", type=float, nargs="+", help=usual)
    p.add_argument("--layers", help="layers that get theta_o2: names or patterns such as '*.mlp.0', with commas")
    p.add_argument("--ratio", type=float, help="theta_o2's width over the network's (default: 0.25)")
    p.add_argument("--epochs", type=int, dest="unlearn_epochs", help="most epochs of REM (default: 4)")
    p.add_argument("-b", "--batch-size", type=int, dest="batch", help="(default: from the number of images)")
    p.add_argument("--lr", type=float, dest="unlearn_lr", help="rate (default: from the kind of network)")
    p.add_argument("--optimizer", choices=("sgd", "adam"), help="(default: from the kind of network)")
    p.add_argument("--seed", type=int, help="of everything that is drawn (default: 0)")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto (default)")
    p.add_argument("-j", "--workers", type=int, help="threads or processes that decode images (default: one a core)")
    p.add_argument("--max-memory", type=float, metavar="GB", help="images that take more are not kept in memory but "
                   "decoded anew in every pass, with the same result (default: half of what is free)")
    p.add_argument("--checkpoint-every", type=int, default=1, metavar="EPOCHS", help="write the state beside --out, "
                   "which the same command goes on from if it was cut off (default: 1; 0: never)")
    p.add_argument("--sync-batchnorm", action="store_true", help="under torchrun, batch statistics of the whole batch "
                   "instead of each process's own")
    p.add_argument("--skip-bad-images", action="store_true", help="leave out training images that cannot be decoded")
    p.add_argument("--force", action="store_true", help="go on although the network does not fit the folder")


def main(given: dict, argv: list[str]) -> int:
    """Run `run.py repair`; returns the exit code. Bad input raises ValueError or TypeError before any training."""
    args, begin = argparse.Namespace(**given), time.perf_counter()
    device = choose_device(args.device)
    report_file, state = (beside_weights(args.out, ending) for ending in (".json", ".state"))
    check_replaced(args, report_file, state)
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers is {args.workers}; give a number of threads or processes, 0 for none beside this")
    settings = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    folder = open_folder(args.data, args.bad, args.clean, args.class_map)
    check_apart(args.out, folder)
    print(folder.said)
    model, reading = build_network(args.model, len(folder.classes), args.image_size, args.crop_pct, args.mean, args.std)
    model, stored = unwrapped(model), checkpoints.read(args.checkpoint, args.ema)
    names = checkpoints.load_into(model, stored, args.checkpoint)
    if others := [key for key in stored if key not in names]:
        print(f"{len(others)} of {len(stored)} stored tensors are not of this network and stay as they are, "
              f"{others[0]} first")
    places = {path: i for i, path in enumerate(folder.paths)}  # before any is left out
    try:
        choose_settings(model, len(places), settings)  # so that a value out of range is told before any work
    except ValueError as error:
        raise ValueError(str(error).replace("unlearn-", "--")) from error  # the flags' names
    room = room_for_images(device, args.max_memory, ranks()[1])
    train, heldout, skipped = folder.load(reading, args.workers, args.skip_bad_images, room)
    if isinstance(train, Streamed):
        print(f"the images take {reading.size_of(len(train)) / 1e9:.3g} GB, and --max-memory is {room / 1e9:.3g}: they "
              f"are decoded anew in every pass, by {train.workers} processes")
    check_forget(folder.forget, len(train))
    if skipped:
        print(f"{len(skipped)} images cannot be decoded and are left out, {skipped[0]} first")
    print(f"{len(train)} training images of {reading.size}x{reading.size}, {len(folder.forget)} known bad, "
          f"{len(heldout or ())} held out; {len(folder.classes)} classes; {device}", flush=True)
    model, train = model.to(device), replace(train.to(device), part=ranks())
    train = replace(train, memory_format=memory_format_of(model, train))
    heldout = heldout and replace(heldout.to(device), part=ranks(), memory_format=train.memory_format)
    model = model.to(memory_format=train.memory_format)
    check_logits(model, train, args.model, args.checkpoint)
    try:
        before = [data and predicted(model, data) for data in (train, heldout)]  # so that every image is decoded once
    except ArithmeticError as error:  # nothing has been trained, so no rate is to blame
        raise ValueError(f"{args.checkpoint} gives logits that are not finite on these images; check the file, --mean "
                         "and --std") from error
    look_first(model, train, before[0], folder, reading, args.force)
    config, _ = choose_settings(model, len(train), settings, too_sure(model, train, folder.forget))
    layers, say = None if args.layers is None else args.layers.split(","), functools.partial(print, flush=True)
    keep = state if args.checkpoint_every else None
    try:
        repaired = repair(model, train, folder.forget, layers=layers, say=say, keep=keep, every=args.checkpoint_every,
                          sync_batchnorm=args.sync_batchnorm, **settings)
        scores = before_and_after(before, repaired, train, heldout, folder)
    except ArithmeticError as error:  # the loss is not finite any more
        raise ValueError(f"{error} (the rate is --lr)") from error
    if ranks()[0] == 0:  # the first process writes, and this first: what follows costs no repair
        checkpoints.write(args.out, stored, repaired, names)
    told = list_suspects(args.out, model, repaired, train, folder, places)
    if ranks()[0]:
        return 0
    seconds = round(time.perf_counter() - begin, 1)
    print(table_of_changes(scores), told, sep="\n")
    print(f"{args.out} has the repaired weights, {report_file} this report; {seconds} s")
    report = {"scores": scores, "seconds": seconds, "arguments": vars(args),
              "settings": {name: getattr(config, name) for name in READ},
              "reading": asdict(reading), "images": len(train), "classes": folder.classes,
              "skipped": [str(path) for path in skipped],
              "sha256": {name: digest(name) for name in (args.checkpoint, *args.bad, args.out)},
              "torchvision": version("torchvision"), **provenance(device, argv)}
    write_whole(report_file, lambda file: file.write(json.dumps(report, indent=1).encode()))
    if keep:
        keep.unlink(missing_ok=True)
    return 0


# --- Told at the end --------------------------------------------------------------------------------------------------

def list_suspects(out: str, model: nn.Module, repaired: nn.Module, data, folder: Folder, places: dict) -> str:
    """Rank the suspects and, in the first process, write them; a line that says so, or why there are none."""
    try:
        found, similar = suspects(repaired, data, folder.forget), similarity(model, data, folder.forget)
        return "" if ranks()[0] else write_suspects(out, found, similar, data, folder, places)
    except Exception as error:
        if ranks()[1] > 1:
            raise  # the other processes know nothing of it
        older = [str(path) for path in beside(out) if path.exists()]
        return f"no list of suspects ({reason_of(error)})" + f"; {', '.join(older)}: of an earlier repair" * bool(older)


def similarity(model: nn.Module, data, forget: torch.Tensor) -> torch.Tensor | None:
    """(N,) how much each image looks like D_f, see `suspects.probe`; None where its features would fill the memory."""
    layers = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    need = 3 * 8 * len(data) * max(weight.shape[1] for weight in layers[-1:])  # bytes, of the last one's in float64
    fits = ranks()[1] > 1 or need <= room_for_images(torch.device("cpu"))  # several processes must agree
    return probe(features(model, data), forget) if fits else None


def before_and_after(before: list, repaired: nn.Module, data, heldout, folder: Folder) -> dict:
    """What the repair changed: [before, after] by the name of the row, and how many predictions changed.

    Args: before: what the network predicted of `data` and of `heldout`, where there is any, before the repair.
    """
    pair, labels = (before[0], predicted(repaired, data)), data.labels.cpu()
    known = torch.zeros(len(data), dtype=torch.bool).index_fill_(0, folder.forget, True)
    rows = {"known bad, their given labels": [share_of((p == labels)[known]) for p in pair],
            "other training images, given labels": [share_of((p == labels)[~known]) for p in pair]}
    if heldout is not None:
        found = before[1], predicted(repaired, heldout)
        rows["held-out images"] = [share_of(p == heldout.labels.cpu()) for p in found]
    if folder.clean is not None:
        wrong = (folder.clean >= 0) & (known | (folder.clean != labels))
        rows["Healed: bad images, true labels"] = [share_of((p == folder.clean)[wrong]) for p in pair]
    return {**rows, "training images with another prediction": int((pair[0] != pair[1]).sum())}


def table_of_changes(scores: dict) -> str:
    """The comparison, in percent."""
    lines = [f"{'':<44}{'before':>8}{'after':>8}"]
    for name, value in scores.items():
        pair = value if isinstance(value, list) else []
        cells = "".join(f"{'-' if v is None else f'{100 * v:.1f}':>8}" for v in pair) or f"{value:>16}"
        lines.append(f"{name:<44}{cells}")
    return "\n".join(lines)
