"""Repair a trained classifier from a folder of images and a list of some bad ones, by REM (Sec. 5).

    python run.py repair --data DIR --model resnet18 --checkpoint model.pt --bad bad.txt --out repaired.pt
"""

import argparse
import functools
import json
import time
from dataclasses import asdict, replace
from importlib.metadata import version

from engine.checks import check_forget
from experiment.data import Streamed
from experiment.devices import check_room, choose_device
from experiment.files import write_whole
from experiment.rows import provenance
from repair import checkpoints
from repair.account import (before_and_after, list_suspects, looks_if_any, show_changes, similarity,
                            table_of_changes, verdict_of)
from repair.channels import with_channels
from repair.finish import finish
from repair.images import Files, changed_by_reading, room_for_images
from repair.inputs import open_folder
from repair.mismatch import check_logits, look_first, memory_format_of, predicted
from repair.network import FLAGS, READ, choose_settings, repaired_with, unwrapped
from repair.networks_by_name import build_network
from repair.outputs import beside_weights, check_apart, check_replaced, digest, written
from repair.progress import Watch, tell_here
from repair.state import bytes_of
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


def main(given: dict, argv: list[str]) -> int:
    """Run `run.py repair`; returns the exit code, 3 where the verdict is not REPAIRED.

    Bad input raises ValueError or TypeError before any training.
    """
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
    places = {path: i for i, path in enumerate(folder.paths)}  # before any is left out
    try:
        check_room(choose_settings(model, len(places), settings)[0], model)  # told before any work
    except ValueError as error:
        raise ValueError(str(error).replace("unlearn-", "--")) from error  # the flags' names
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
    print(f"{len(train)} training images of {reading.size}x{reading.size}, {len(folder.forget)} known bad, "
          f"{len(heldout or ())} held out; {len(folder.classes)} classes; {device}", flush=True)
    everything = [*folder.paths, *(path for path, _ in folder.heldout or ())]
    for line in changed_by_reading(everything, reading, args.workers):
        print(line, flush=True)
    model, train = model.to(device), train.to(device)
    train = replace(train, memory_format=memory_format_of(model, train))
    heldout = heldout and replace(heldout.to(device), memory_format=train.memory_format)
    model = model.to(memory_format=train.memory_format)
    check_logits(model, train, args.model, args.checkpoint)
    try:
        before = [data and predicted(model, data) for data in (train, heldout)]  # so that every image is decoded once
    except ArithmeticError as error:  # nothing has been trained, so no rate is to blame
        raise ValueError(f"{args.checkpoint} gives logits that are not finite on these images; check the file, --mean "
                         "and --std") from error
    class_map = beside_weights(args.out, ".classes.txt")
    look_first(model, train, before[0], folder, reading, args.force, class_map)
    if not args.force:
        check_believed(train.labels.cpu(), before[0], folder.forget)
    layers = None if args.layers is None else [name.strip() for name in args.layers.split(",")]
    say = functools.partial(print, flush=True)
    keep, files = state if args.checkpoint_every else None, Files(folder.paths, folder.labels, reading)
    truths = None if folder.truths is None else folder.truths[folder.forget]
    try:
        repaired, config = repaired_with(model, train, folder.forget, layers=layers, say=say, keep=keep,
                                         every=args.checkpoint_every, leave=bytes_of(stored), files=files,
                                         true_labels=truths, **settings)
    except ArithmeticError as error:  # the loss is not finite any more
        raise ValueError(f"{error} (the rate is --lr)") from error
    # written before what follows, so that this costs no repair
    begun = {"unfinished": "the repair has not come to its end", "scores": {}, "sha256": digests, "settings": {}}
    written(lambda: write_whole(report_file, lambda file: file.write(json.dumps(begun).encode())), keep, say)
    written(lambda: checkpoints.write(args.out, stored, repaired, names), keep, say)
    finished = None
    similar = functools.cache(lambda: similarity(model, train, folder.forget, config.seed))  # a pass, of many uses
    try:
        if args.finish and config.unlearn_epochs:
            alike = looks_if_any(similar, train).alike
            with Watch("the finish", tell_here) as watch:
                finished = finish(model, repaired, watch.over(train), folder.forget, config, true_labels=truths,
                                  alike=alike, log=watch.epoch)
            say(finished.line)
            repaired = finished.model
            written(lambda: checkpoints.write(args.out, stored, repaired, names), keep, say)
        after = [data and predicted(repaired, data) for data in (train, heldout)]
        scores = before_and_after(before, after, train, heldout, folder)
        found = verdict_of(model, train, heldout, before, after, folder.forget, similar, truths)
    except ArithmeticError as error:
        raise ValueError(f"{error} (the rate is --lr); {args.out} has these weights") from error
    told, ranking = list_suspects(args.out, similar, repaired, train, folder, places)
    seconds = round(time.perf_counter() - begin, 1)
    line = found.line(classes=folder.classes)
    shown = show_changes(args, scores, before, after, train, heldout, folder, ranking, line)
    print(table_of_changes(scores), line, told, shown, sep="\n")
    print(f"{args.out} has the repaired weights, {report_file} this report; {seconds} s")
    report = {"scores": scores, "verdict": found.report(), "finish": finished and finished.report(),
              "likely_bad": ranking and ranking.likely, "seconds": seconds, "arguments": vars(args),
              "settings": {name: getattr(config, name) for name in READ},
              "reading": asdict(reading), "images": len(train), "classes": folder.classes,
              "skipped": [str(path) for path in skipped],
              "sha256": {**digests, args.out: digest(args.out)},
              "torchvision": version("torchvision"), **provenance(device, argv)}
    text = json.dumps(report, indent=1).encode()
    written(lambda: write_whole(report_file, lambda file: file.write(text)), keep, say)
    if keep:
        keep.unlink(missing_ok=True)
    return 0 if found.words == (REPAIRED,) else 3
