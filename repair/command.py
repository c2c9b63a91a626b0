"""Repair a trained classifier from a folder of images and a list of some bad ones, by REM (Sec. 5).

    python run.py repair --data DIR --model resnet18 --checkpoint model.pt --bad bad.txt --out repaired.pt
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from engine.checks import check_forget
from experiment.data import Data, Streamed
from experiment.devices import check_room, choose_device
from experiment.files import write_whole
from experiment.rows import provenance
from repair import checkpoints
from repair.account import before_and_after, list_suspects, show_changes, table_of_changes
from repair.channels import with_channels
from repair.images import Files, Reading, changed_by_reading, room_for_images
from repair.impure import told
from repair.inputs import Folder, open_folder
from repair.mismatch import check_logits, look_first, memory_format_of
from repair.network import FLAGS, READ, choose_settings, unwrapped
from repair.networks_by_name import build_network
from repair.outputs import beside_weights, check_apart, check_replaced, digest, written
from repair.pipeline import Repaired, Seen, repair, see
from repair.progress import tell_here as say
from repair.state import bytes_of
from repair.suspects_list import named
from repair.verdict import REPAIRED, check_believed


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The flags, under timm's names where it has one."""
    p.epilog = ("Exit code: 0 repaired; 1 a file could not be written; 2 bad input, told before any training; 3 NOT "
                "REPAIRED or HARMED, the weights are written all the same.")
    p.add_argument("--data", required=True, help="folder of train/<class>/* and, held out, test/ or val/<class>/*")
    p.add_argument("--model", required=True, help="resnet9, vit, torchvision's name, timm:NAME or FILE.py:FUNCTION")
    p.add_argument("--checkpoint", required=True, help="the trained weights: .pt, .pth, .bin, .ckpt or .safetensors")
    p.add_argument("--bad", required=True, nargs="+", action="extend", metavar="LIST",
                   help="known bad images: paths from --data, from its train/ or from here, or indices in the order "
                        "of the folders' and files' names, in .txt, .csv, .json or .npy; lists together, such as the "
                        "first one and suspects.csv with true in a column `bad`; a CSV's column `true_label`, for all "
                        "or some of them, is taught")
    p.add_argument("--out", required=True,
                   help="file of the repaired weights; a report (.json; .html to open) and suspects.csv go beside it")
    p.add_argument("--ema", action="store_true", help="repair the averaged weights of the checkpoint")
    p.add_argument("--clean", help="CSV of true labels, which the report alone reads: a path and a label column")
    p.add_argument("--class-map", help="text file of one class per line in the network's order (default: "
                   "the folders' names, sorted as strings)")
    p.add_argument("--image-size", type=int, help="pixels per side (default: the architecture's usual; resnet9, vit "
                   "and FILE.py have none)")
    p.add_argument("--crop-pct", type=float, help="crop over resized side (default: usual; with --image-size: 1)")
    p.add_argument("--resize", choices=("crop", "squash"), default="crop", help="images that are not square: crop "
                   "their borders, or squash them whole into a square, as in the network's training (default: crop)")
    usual = ("per channel, one number where the network takes one, in [0, 1] (default: the architecture's usual; "
             "resnet9, vit: that of the training images; FILE.py: ImageNet's)")
    p.add_argument("--mean", type=float, nargs="+", help=usual)
    p.add_argument("--std", type=float, nargs="+", help=usual)
    p.add_argument("--layers", help="layers that get theta_o2: names or patterns such as '*.mlp.0', with commas")
    p.add_argument("--ratio", type=float, help="theta_o2's width over the network's (default: 0.25)")
    p.add_argument("--epochs", type=int, dest="unlearn_epochs", help="most epochs of REM, passes over all training "
                   "images; --stop ends it before that; 0: no repair (default: 8)")
    p.add_argument("--stop", choices=("repaired", "max"), help="repaired: after two epochs in a row that are no "
                   "better than the best, by held-out training images and the known bad ones; the latest epoch that "
                   "is level with the best is written; max: all of --epochs run, and the last one is written "
                   "(default: repaired)")
    p.add_argument("-b", "--batch-size", type=int, dest="batch", help="(default: from the number of images)")
    p.add_argument("--lr", type=float, dest="unlearn_lr", help="rate of unlearning; that of the finish is in "
                   "proportion (default: from the kind of network)")
    p.add_argument("--optimizer", choices=("sgd", "adam"), help="(default: from the kind of network)")
    p.add_argument("--seed", type=int, help="of everything that is drawn (default: 0)")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto (default)")
    p.add_argument("-j", "--workers", type=int, help="threads or processes that decode images (default: one a core)")
    p.add_argument("--max-memory", type=float, metavar="GB", help="images that take more are not kept in memory but "
                   "decoded anew in every pass, with the same result (default: half of what is free)")
    p.add_argument("--checkpoint-every", type=int, default=1, metavar="EPOCHS", help="write the state beside --out, "
                   "which the same command goes on from if it was cut off (default: 1; 0: never)")
    p.add_argument("--no-finish", action="store_false", dest="finish", help="leave the network as REM leaves it: do "
                   "not train what was there before it once more, without what is likely bad")
    p.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be decoded, of "
                   "training and held out")
    p.add_argument("--force", action="store_true", help="go on although the network does not fit the folder, or does "
                   "not give the known bad images their labels")


class Inputs(NamedTuple):
    """What the user's files hold."""

    folder: Folder
    model: nn.Module  # with the weights of the checkpoint, on the device
    reading: Reading
    stored: dict[str, torch.Tensor]  # as in the checkpoint
    names: dict[str, str]  # stored name -> the network's
    digests: dict[str, str]  # SHA-256 of each file as it was read
    places: dict[Path, int]  # index of each image in the order of its folder, before any is left out
    train: Data | Streamed
    heldout: Data | Streamed | None
    skipped: list[Path]


def main(given: dict, argv: list[str]) -> int:
    """Run `run.py repair`; returns the exit code, 3 where the verdict is not REPAIRED.

    Bad input raises ValueError or TypeError before any training.
    """
    args, begin = argparse.Namespace(**given), time.perf_counter()
    device = choose_device(args.device)
    report_file, state = (beside_weights(args.out, ending) for ending in (".json", ".state"))
    check_arguments(args, report_file, state)
    settings = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    keep = state if args.checkpoint_every else None
    inputs = read_inputs(args, settings, device)
    before = look_before(args, inputs)
    found, scores = repair_and_save(args, inputs, before, settings, report_file, keep)
    line = list_suspects(args.out, found, inputs.train, inputs.folder, inputs.places)
    tell_changes(args, inputs, found, scores, line)
    seconds = round(time.perf_counter() - begin, 1)
    print(f"{args.out} has the repaired weights, {report_file} this report; {seconds} s")
    report = report_of(args, argv, inputs, found, scores, seconds, device)
    text = json.dumps(report, indent=1).encode()
    written(lambda: write_whole(report_file, lambda file: file.write(text)), keep, say)
    if keep:
        keep.unlink(missing_ok=True)
    return 0 if found.verdict.words == (REPAIRED,) else 3


def check_arguments(args: argparse.Namespace, report_file: Path, state: Path) -> None:
    """Raise ValueError for flags that cannot be used and for outputs that would replace something."""
    check_replaced(args, report_file, state)
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers is {args.workers}; give a number of threads or processes, 0 for none beside this")


# --- Files in ---------------------------------------------------------------------------------------------------------

def read_inputs(args: argparse.Namespace, settings: dict, device: torch.device) -> Inputs:
    """Read lists, weights and images, and say what was found."""
    folder = open_folder(args.data, args.bad, args.clean, args.class_map)
    check_apart(args.out, folder)
    print(folder.said)
    model, reading, stored, names, digests = read_network(args, folder)
    places = {path: i for i, path in enumerate(folder.paths)}
    try:
        check_room(choose_settings(model, len(places), settings)[0], model)  # told before any work
    except ValueError as error:
        raise ValueError(str(error).replace("unlearn-", "--")) from error  # the flags' names
    train, heldout, skipped = read_images(args, folder, reading, device)
    everything = [*folder.paths, *(path for path, _ in folder.heldout or ())]
    for line in changed_by_reading(everything, reading, args.workers):
        say(line)
    model = model.to(device)
    train = train.to(device)
    train = replace(train, memory_format=memory_format_of(model, train))
    heldout = heldout and replace(heldout.to(device), memory_format=train.memory_format)
    model = model.to(memory_format=train.memory_format)
    check_logits(model, train, args.model, args.checkpoint)
    return Inputs(folder, model, reading, stored, names, digests, places, train, heldout, skipped)


def read_network(args: argparse.Namespace, folder: Folder) -> tuple[nn.Module, Reading, dict, dict, dict]:
    """The network with its weights, how images are read for it, the stored weights, their names, and digests."""
    model, reading = build_network(args.model, len(folder.classes), args.image_size, args.crop_pct, args.mean, args.std)
    reading = replace(reading, resize=args.resize)
    model, stored = unwrapped(model), checkpoints.read(args.checkpoint, args.ema)
    reading = with_channels(model, stored, reading)
    if reading.channels == 1:
        print("the network takes one channel: images are read as grey ones, of colours by their luminance")
    digests = {args.checkpoint: digest(args.checkpoint), **folder.sha256}  # as they are now: they may change or go
    names = checkpoints.load_into(model, stored, args.checkpoint)
    if others := [key for key in stored if key not in names]:
        print(f"{len(others)} of {len(stored)} stored tensors are not of this network and stay as they are, "
              f"{others[0]} first")
    return model, reading, stored, names, digests


def read_images(args: argparse.Namespace, folder: Folder, reading: Reading, device: torch.device):
    """Training images, held-out ones or None, and the files that were left out."""
    room = room_for_images(device, args.max_memory)
    train, heldout, skipped = folder.load(reading, args.workers, args.skip_bad_images, room)
    if isinstance(train, Streamed):
        print(f"the images take {reading.size_of(len(train)) / 1e9:.3g} GB, and --max-memory is {room / 1e9:.3g}: they "
              f"are decoded anew in every pass, by {train.workers} processes")
    if skipped:
        print(f"{len(skipped)} images cannot be decoded and are left out, {skipped[0]} first")
    if not len(folder.forget):
        raise ValueError("none of the listed images can be decoded; list others, or give whole files")
    check_forget(folder.forget, len(train))
    say(f"{len(train)} training images of {reading.size}x{reading.size}, {len(folder.forget)} known bad, "
        f"{len(heldout or ())} held out; {len(folder.classes)} classes; {device}")
    return train, heldout, skipped


# --- The repair -------------------------------------------------------------------------------------------------------

def look_before(args: argparse.Namespace, inputs: Inputs) -> Seen:
    """What the network gives before the repair; ValueError where it does not fit the folder or the list."""
    try:
        before = see(inputs.model, inputs.train, inputs.heldout, say)
    except ArithmeticError as error:  # nothing has been trained, so no rate is to blame
        raise ValueError(f"{args.checkpoint} gives logits that are not finite on these images; check the file, --mean "
                         "and --std") from error
    class_map = beside_weights(args.out, ".classes.txt")
    look_first(inputs.model, inputs.train, before.called, inputs.folder, inputs.reading, args.force, class_map)
    if not args.force:
        check_believed(inputs.train.labels.cpu(), before.called, inputs.folder.forget)
    return before


def repair_and_save(args: argparse.Namespace, inputs: Inputs, before: Seen, settings: dict, report_file: Path,
                    keep: Path | None) -> tuple[Repaired, dict]:
    """The repair, whose weights are written as they come, and what it changed."""
    folder, saved = inputs.folder, []
    layers = None if args.layers is None else [name.strip() for name in args.layers.split(",")]
    truths = None if folder.truths is None else folder.truths[folder.forget]

    def save(network: nn.Module) -> None:
        if not saved:
            begun = {"unfinished": "the repair has not come to its end", "scores": {}, "sha256": inputs.digests,
                     "settings": {}}
            written(lambda: write_whole(report_file, lambda file: file.write(json.dumps(begun).encode())), keep, say)
        written(lambda: checkpoints.write(args.out, inputs.stored, network, inputs.names), keep, say)
        saved.append(args.out)

    try:
        found = repair(inputs.model, inputs.train, folder.forget, heldout=inputs.heldout, true_labels=truths,
                       force=True, finish=args.finish, before=before, save=save, quiet=True, say=say, layers=layers,
                       keep=keep, every=args.checkpoint_every, leave=bytes_of(inputs.stored),
                       files=Files(folder.paths, folder.labels, inputs.reading), **settings)
        return found, before_and_after(found.before, found.after, inputs.train, inputs.heldout, folder)
    except ArithmeticError as error:  # the loss or a logit is not finite any more
        there = f"; {args.out} has these weights" if saved else ""
        raise ValueError(f"{error} (the rate is --lr){there}") from error


# --- Files out --------------------------------------------------------------------------------------------------------

def tell_changes(args: argparse.Namespace, inputs: Inputs, found: Repaired, scores: dict, listed: str) -> None:
    """Write the page and print the table, the verdict and where the list and the page are."""
    line = found.verdict.line(classes=inputs.folder.classes)
    shown = show_changes(args, scores, found.before, found.after, inputs.train, inputs.heldout, inputs.folder,
                         found.ranking, line)
    print(table_of_changes(scores), line, listed, shown, sep="\n")
    if names := names_of(found.doubted, inputs.folder):
        print(told(names, len(inputs.folder.forget)))


def names_of(index: torch.Tensor | None, folder: Folder) -> list[str]:
    """The paths of some training images, as lists have them."""
    return [] if index is None else [named(folder, i) for i in index.tolist()]


def report_of(args: argparse.Namespace, argv: list[str], inputs: Inputs, found: Repaired, scores: dict, seconds: float,
              device: torch.device) -> dict:
    """The report, for JSON."""
    return {"scores": scores, "verdict": found.verdict.report(), "finish": found.finished and found.finished.report(),
            "doubted": names_of(found.doubted, inputs.folder),
            "likely_bad": found.ranking and found.ranking.likely, "seconds": seconds, "arguments": vars(args),
            "settings": {name: getattr(found.config, name) for name in READ},
            "reading": asdict(inputs.reading), "images": len(inputs.train), "classes": inputs.folder.classes,
            "skipped": [str(path) for path in inputs.skipped],
            "sha256": {**inputs.digests, args.out: digest(args.out)},
            "torchvision": version("torchvision"), **provenance(device, argv)}
