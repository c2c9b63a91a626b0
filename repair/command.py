"""Repair a trained classifier from a folder of images and a list of some bad ones, by REM (Sec. 5).

    python run.py repair --data DIR --model resnet18 --checkpoint model.pt --bad bad.txt --out repaired.pt
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import nn

from engine.checks import check_forget
from experiment.data import Data, Streamed
from experiment.devices import check_room, choose_device
from experiment.files import write_whole
from experiment.rows import provenance
from repair import checkpoints
from repair.impure import told
from repair.inputs import Files, Folder, Reading, load, open_folder, room_for_images
from repair.mismatch import check_labels, check_logits
from repair.network import FLAGS, READ, choose_settings, memory_format_of, unwrapped
from repair.networks_by_name import build_network
from repair.outputs import (before_and_after, beside_weights, check_outputs, digest, list_suspects, show_changes,
                            table_of_changes)
from repair.pipeline import Repaired, Seen, repair, see
from repair.verdict import REPAIRED, check_learnt


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The flags, under timm's names where it has one."""
    p.epilog = ("Exit code: 0 repaired; 1 a file could not be written; 2 bad input, refused before any training; 3 NOT "
                "REPAIRED or HARMED, the weights are written all the same.")
    p.add_argument("--data", required=True, help="folder of train/<class>/* and, held out, test/ or val/<class>/*")
    p.add_argument("--model", required=True, help="resnet9, vit, torchvision's name, timm:NAME or FILE.py:FUNCTION")
    p.add_argument("--checkpoint", required=True, help="the trained weights: .pt, .pth, .bin, .ckpt or .safetensors")
    p.add_argument("--bad", required=True, nargs="+", action="extend", metavar="LIST",
                   help="known bad images: paths from --data, from its train/ or from here, or indices in the order "
                        "of the folders' and files' names, one a line in .txt, or in .csv with a column filename; "
                        "lists together, such as the first one and suspects.csv with true in a column `bad`; a CSV's "
                        "column `true_label`, for all or some of them, is taught; BackdoorBench's attack_result.pt "
                        "lists the images that it poisoned")
    p.add_argument("--out", required=True,
                   help="file of the repaired weights; a report (.json; .html to open) and suspects.csv go beside it")
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
    p.add_argument("--stop", choices=("repaired", "max"), help="repaired: early stopping, after two epochs in a row "
                   "that are no better than the best on held-out training images; max: no early stopping, all of "
                   "--epochs run (default: repaired)")
    p.add_argument("-b", "--batch-size", type=int, dest="batch", help="(default: from the number of images)")
    p.add_argument("--lr", type=float, dest="unlearn_lr", help="rate of unlearning; that of the finish is in "
                   "proportion (default: from the kind of network)")
    p.add_argument("--optimizer", choices=("sgd", "adam"), help="(default: from the kind of network)")
    p.add_argument("--seed", type=int, help="of everything that is drawn (default: 0)")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto (default)")
    p.add_argument("-j", "--workers", type=int, help="threads or processes that decode images (default: one a core)")
    p.add_argument("--max-memory", type=float, metavar="GB", help="images that take more are not kept in memory but "
                   "decoded again in every pass, with the same result (default: half of what is free)")
    p.add_argument("--no-finish", action="store_false", dest="finish", help="leave the network as REM leaves it: do "
                   "not train the original network once more, without what is likely bad")
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
    train: Data | Streamed
    heldout: Data | Streamed | None


def main(given: dict, argv: list[str]) -> int:
    """Run `run.py repair`; returns the exit code, 3 where the verdict is not REPAIRED.

    Bad input raises ValueError or TypeError before any training.
    """
    args, began = argparse.Namespace(**given), time.perf_counter()
    device = choose_device(args.device)
    check_arguments(args)
    inputs = read_inputs(args, device)
    before = look_before(args, inputs)
    found = repair_and_save(args, inputs, before)
    scores = before_and_after(found, inputs.train, inputs.heldout, inputs.folder)
    say(table_of_changes(scores))
    say(found.verdict.line(classes=inputs.folder.classes))
    say(list_suspects(args.out, found, inputs.train, inputs.folder))
    say(show_changes(args, scores, found, inputs.train, inputs.heldout, inputs.folder))
    if len(found.doubted):
        say(told(names_of(found, inputs.folder), len(inputs.folder.forget)))
    write_report(args, argv, inputs, found, scores, device, round(time.perf_counter() - began, 1))
    beside_weights(args.out, ".state").unlink(missing_ok=True)
    return 0 if found.verdict.words == (REPAIRED,) else 3


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for flags that cannot be used and for outputs that would replace something."""
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers is {args.workers}; give a number of threads or processes, 0 for none beside this")
    check_outputs(args)


def settings_of(args: argparse.Namespace) -> dict:
    """The settings that were given, by their names in Config."""
    return {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}


# --- Files in ---------------------------------------------------------------------------------------------------------

def read_inputs(args: argparse.Namespace, device: torch.device) -> Inputs:
    """Read lists, weights and images, and say what was found."""
    folder = open_folder(args.data, args.bad, args.class_map)
    say(folder.said)
    check_forget(folder.forget, len(folder.paths))
    model, reading, stored, names = read_network(args, folder)
    digests = {args.checkpoint: digest(args.checkpoint), **folder.sha256}  # as they are now: they may change or go
    try:
        check_room(choose_settings(model, len(folder.paths), settings_of(args))[0], model)
    except ValueError as error:
        raise ValueError(str(error).replace("unlearn-", "--")) from error  # the flags' names
    train, heldout = read_images(args, folder, reading, device)
    train = replace(train, memory_format=memory_format_of(model.to(device), train))
    heldout = heldout and replace(heldout, memory_format=train.memory_format)
    model = model.to(memory_format=train.memory_format)
    check_logits(model, train, args.model, args.checkpoint)
    return Inputs(folder, model, reading, stored, names, digests, train, heldout)


def read_network(args: argparse.Namespace, folder: Folder) -> tuple[nn.Module, Reading, dict, dict]:
    """The network with its weights, how images are read for it, the stored weights and their names."""
    model, reading = build_network(args.model, len(folder.classes), args.image_size, args.crop_pct, args.mean, args.std)
    reading = replace(reading, resize=args.resize)
    if reading.channels == 1:
        say("the network takes one channel: images are read as grey ones, of colours by their luminance")
    model, stored = unwrapped(model), checkpoints.read(args.checkpoint)
    names = checkpoints.load_into(model, stored, args.checkpoint)
    if others := [key for key in stored if key not in names]:
        say(f"{len(others)} of {len(stored)} stored tensors are not of this network and stay as they are, "
            f"{others[0]} first")
    return model, reading, stored, names


def read_images(args: argparse.Namespace, folder: Folder, reading: Reading, device: torch.device):
    """Training images, and held-out ones or None."""
    room = room_for_images(device, args.max_memory)
    count = len(folder.paths)
    say(f"{count} training images of {reading.size}x{reading.size}, {len(folder.forget)} known bad, "
        f"{len(folder.heldout or ())} held out; {len(folder.classes)} classes; {device}")
    if reading.size_of(count) > room:
        say(f"the images take {reading.size_of(count) / 1e9:.3g} GB, and --max-memory is {room / 1e9:.3g}: they are "
            "decoded again in every pass")
    train, heldout = load(folder, reading, args.workers, room)
    return train.to(device), heldout and heldout.to(device)


# --- The repair -------------------------------------------------------------------------------------------------------

def look_before(args: argparse.Namespace, inputs: Inputs) -> Seen:
    """What the network gives before the repair; ValueError where it does not fit the folder or the list."""
    try:
        before = see(inputs.model, inputs.train, inputs.heldout)
    except ArithmeticError as error:  # nothing has been trained, so no rate is to blame
        raise ValueError(f"{args.checkpoint} gives logits that are not finite on these images; check the file, --mean "
                         "and --std") from error
    labels, forget = inputs.train.labels.cpu(), inputs.folder.forget
    right = (before.called == labels).double()
    say(f"the network gives {right[forget].mean():.1%} of the known bad images their labels as given, and "
        f"{right.mean():.1%} of all")
    if not args.force:
        check_labels(before.called, labels, forget, inputs.folder.classes)
        check_learnt(labels, before.called, forget)
    return before


def repair_and_save(args: argparse.Namespace, inputs: Inputs, before: Seen) -> Repaired:
    """The repair, whose weights are written as they come."""
    folder, saved = inputs.folder, []
    layers = None if args.layers is None else [name.strip() for name in args.layers.split(",")]

    def save(network: nn.Module) -> None:
        checkpoints.write(args.out, inputs.stored, network, inputs.names)
        saved.append(args.out)

    try:
        return repair(inputs.model, inputs.train, folder.forget, heldout=inputs.heldout, true_labels=folder.truths,
                      force=True, finish=args.finish, before=before, save=save, quiet=True, say=say, layers=layers,
                      keep=beside_weights(args.out, ".state"),
                      files=Files(folder.paths, folder.labels, inputs.reading), **settings_of(args))
    except ArithmeticError as error:  # the loss or a logit is not finite any more
        there = f"; {args.out} has these weights" if saved else ""
        raise ValueError(f"{error} (the rate is --lr){there}") from error


# --- Files out --------------------------------------------------------------------------------------------------------

def names_of(found: Repaired, folder: Folder) -> list[str]:
    """The paths of the listed images that look like good ones, as lists have them."""
    return [folder.name(i) for i in found.doubted.tolist()]


def write_report(args: argparse.Namespace, argv: list[str], inputs: Inputs, found: Repaired, scores: dict,
                 device: torch.device, seconds: float) -> None:
    """Write the report, and say where it is."""
    file = beside_weights(args.out, ".json")
    report = {"scores": scores, "verdict": found.verdict.report(),
              "finish": found.finished and found.finished.report(),
              "doubted": names_of(found, inputs.folder), "likely_bad": found.ranking and found.ranking.likely,
              "seconds": seconds, "arguments": vars(args),
              "settings": {name: getattr(found.config, name) for name in READ},
              "reading": asdict(inputs.reading), "images": len(inputs.train), "classes": inputs.folder.classes,
              "sha256": {**inputs.digests, args.out: digest(args.out)},
              "torchvision": version("torchvision"), **provenance(device, argv)}
    content = json.dumps(report, indent=1).encode()
    write_whole(file, lambda opened: opened.write(content))
    say(f"{args.out} has the repaired weights, {file} this report; {seconds} s")
