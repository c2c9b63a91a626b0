"""REM+ on a network of one's own: the settings and the layers that fit it, how far it goes, and a state to resume from.

    network, config = unlearn(model, data, forget)   # any network, Data or Streamed, (k,) indices; a plain network
"""

import contextlib
import fnmatch
import math
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from engine.checks import check_forget, first_line, nearest, settings_from
from engine.modes import eval_mode
from engine.streams import stream
from etd import Expanded
from expand import expand
from experiment.console import progress
from experiment.data import Data, Streamed
from experiment.settings import Config
from rem import State, add_capacity
from rem_plus import MEMORISED, EarlyStopping, Settings, rem_plus
from repair.inputs import Files
from repair.networks_by_name import check_parameters
from repair.state import repair_key, resume, save_state
from repair.truths import check_truths, with_truths

FAMILIES = ("*mlp.0", "*mlp.fc1", "*block.3", "*denselayer*.conv1", "*branch2.0", "*squeeze",
            "*branch[23].0.conv", "*linear1")  # inner layers of blocks; the last one of nn.TransformerEncoderLayer
FLAGS = ("batch", "optimizer", "unlearn_lr", "unlearn_epochs", "stop", "ratio", "seed")  # settings that have a flag
READ = (*FLAGS, "momentum", "weight_decay", "gamma", "beta", "p_mem", "max_passes", "reach", "farther", "disbelieved",
        "precision")  # of Config
UNLEARN_LR = {"sgd": 0.004, "adam": 1e-4}  # by optimiser
NEARER = 2  # times that a removal is begun again at half the distance
TOO_FAR = 1 / 3  # what Acc(held out) may lose in the first epoch
TOO_NEAR = 1 / 3  # what Acc(D_f) may be after the first epoch of a removal that is nearer


def unlearn(model: nn.Module, data: Data | Streamed, forget: torch.Tensor, *, true_labels: torch.Tensor | None = None,
            layers=None, say=None, keep=None, files: Files | None = None, **settings) -> tuple[nn.Module, Config]:
    """A copy of a trained classifier after REM+ from some known bad examples, and the settings that made it.

    Args:
        model: any network that `expand` takes, also inside DataParallel or compiled; left as it is.
        data: all training images, labels as the network was trained on them, in memory or Streamed.
        forget: (k,) int64 indices of the known bad ones; neither empty nor all.
        true_labels: (k,) int64, the true label of each of them, -1 where unknown; they are taught, see truths.py.
        layers: names or patterns (`*.mlp.0`) of the layers that get theta_o2; None: chosen by `expand_any`.
        say: called with a line of text about each choice; where it is given, each epoch prints a line of progress.
        keep: file for the state after each epoch, from which the same call goes on; None: no state.
        files: what `data` was read from, by which a state knows whether the images are the same.
        settings: of settings.Config, over the defaults of `choose_settings`, such as unlearn_epochs=2 or seed=1.
    Returns: a plain network of the keys, shapes and dtypes of `model`, in its modes; the settings, whose reach is the
        one that was used in the end, see `another_reach`.
    Raises: ValueError: forget, a true label or a setting cannot be used; TypeError: no choice of layers can be
        expanded; NonFiniteLoss: the rate is too high.
    """
    model, forget = unwrapped(model), check_forget(forget, len(data))
    truths = check_truths(true_labels, forget, data.labels, data.classes)
    check_parameters(model, "the network")
    data = replace(data, memory_format=memory_format_of(model, data))
    config, reasons = choose_settings(model, len(data), settings)
    if "reach" in settings and "farther" not in settings:
        config = replace(config, farther=0)  # a distance that is given stays
    for line in reasons if say else ():
        say(line)
    example = torch.zeros((2, *data.shape), device=next(model.parameters()).device)
    expanded = expand_any(model, example, config, layers, say)
    known = truths if truths is None else truths.tolist()
    key = repair_key(model, data, forget, files, config, layers, known) if keep else None
    run = Run(expanded, with_truths(data, forget, truths), forget, config, keep, key, say)
    network, reach = at_the_right_reach(run, 0 if "reach" in settings or config.stop == "max" else NEARER)
    return network, replace(config, reach=reach)


class Run(NamedTuple):
    """What a repair has decided on before Algorithm 1 begins."""

    expanded: Expanded
    data: object  # D_tr, and what true labels add to it
    forget: torch.Tensor  # (k,) int64, D_f
    config: Config
    keep: str | Path | None  # file of the state
    key: str | None  # `repair_key`
    say: object  # called with a line; None: silent


# --- How far ----------------------------------------------------------------------------------------------------------

def at_the_right_reach(run: Run, nearer: int) -> tuple[nn.Module, float]:
    """REM+, begun again after its first epoch while `another_reach` asks for it, and the reach of the last run.

    nearer: how often half the distance may be tried.
    """
    reach, epochs = run.config.reach, run.config.unlearn_epochs
    s, end = begin(run, reach, run.config.farther)
    if run.keep and (line := resume(s, end, run.keep, run.key)) and run.say:
        run.say(line)
    with warnings.catch_warnings(), progress("REM+", quiet=run.say is None) as log_epoch:
        warnings.filterwarnings("ignore", r"Acc\(W\) fell")  # verdict.py judges harm with more to go by

        def log(epoch, epochs, net, **record) -> None:
            log_epoch(epoch, epochs, net, **record)
            save(run, s, end)

        while s.epoch == 0 and epochs:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"Acc\(D_f\) is .* after the returned epoch")  # it comes at the end
                go_on(run, s, end, 1)
            other, why = another_reach(run, s, end, reach, nearer)
            if why and run.say:
                run.say(why)
            if other is None:
                log(1, epochs, s.expanded, **s.record)
            else:
                nearer = nearer - 1 if other < reach else 0
                reach = other
                s, end = begin(run, reach, farther=0)
        network = go_on(run, s, end, epochs, log)
    return network, s.config.reach


def begin(run: Run, reach: float, farther: int) -> tuple[State, EarlyStopping]:
    """Algorithm 1's state after step 1, and what decides the end."""
    config = replace(run.config, reach=reach, farther=farther)
    s = add_capacity(run.expanded, run.data, run.forget, settings_from(config, Settings),
                     stream(config.seed, "repair"))
    return s, EarlyStopping(s)


def go_on(run: Run, s: State, end: EarlyStopping, last: int, log=None) -> nn.Module:
    """REM+ from a state on until the epoch `last`."""
    s.config = replace(s.config, unlearn_epochs=last)
    return rem_plus(run.expanded, run.data, run.forget, run.config, s.generator, log=log, state=s, end=end)


def another_reach(run: Run, s: State, end: EarlyStopping, reach: float, nearer: int
                  ) -> tuple[float | None, str | None]:
    """Whether REM+ is to begin again after its first epoch, which did more harm than step 3 can mend or removed
    nothing: the reach, None if not; and a line, also where REM+ has begun again by itself.

    Choice: how far a removal may go depends on the network: timm's `test_resnet` has accuracies of 0.7 after ten epochs
    at reach 0.07 and of 0.96 at 0.03, while small networks with BatchNorm lose nothing at 0.07 and keep half of the
    trigger at 0.03 (600 images). So it is halved where the first epoch ends more than TOO_FAR below the untouched
    network on the images that step 3 left out: test_resnet lost 0.42 there, the others 0.1 to 0.25. Bad images among
    them count as lost, too, though they should be: so where the nearer removal has come undone within an epoch, the
    farther one is taken.
    """
    if end.held_out is None:
        return None, None
    if nearer and end.untouched - end.acc > TOO_FAR:
        other = s.config.reach / 2
        return other, (f"Acc(held out) is {end.acc:.2f} after the first epoch, {end.untouched:.2f} before it: step 2 "
                       f"went too far; once more, with reach {other:.3g}")
    if reach < run.config.reach and end.acc_forget > TOO_NEAR:
        other = 2 * reach
        return other, (f"Acc(D_f) is {end.acc_forget:.2f} after the first epoch: step 2 was too near; once more, with "
                       f"reach {other:.3g}")
    if s.config.reach > reach:
        return None, (f"Acc(held out) was above {MEMORISED:g} after the first epoch: what the network has memorised "
                      f"was still there; once more, with reach {s.config.reach:.3g}")
    return None, None


def save(run: Run, s: State, end: EarlyStopping) -> None:
    """Write the state of an epoch, where one is kept; a full disk, whatever torch makes of it, costs no repair."""
    if run.keep is None:
        return
    try:
        save_state(s, end, run.keep, run.key)
    except Exception as error:
        if run.say:
            why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            run.say(f"the state of epoch {s.epoch} could not be written to {run.keep} ({why})")


# --- Settings ---------------------------------------------------------------------------------------------------------

def choose_settings(model: nn.Module, n: int, given: dict) -> tuple[Config, list[str]]:
    """Batch, optimiser, its rate and epochs for n training images, and the reason for each; what is given stays.

    Choice: gamma 0.05, below chance for few classes, though Sec. 5 wants it above: of few known images nearly
    all have to change, or the trigger that they share stays.
    """
    batch = min(512, max(16, 2 ** round(math.log2(max(1, n) / 20))))
    norm = any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model.modules())
    why = f"the network has {'' if norm else 'no '}BatchNorm; Table 3"
    optimizer = "sgd" if norm else "adam"
    sgd = given.get("optimizer", optimizer) == "sgd"
    chosen = {"batch": (batch, f"{-(-n // batch)} steps per epoch on {n} images; from 16 to the paper's 512"),
              "optimizer": (optimizer, why),
              "unlearn_lr": (UNLEARN_LR["sgd"], "near Table 3's") if sgd else
                            (UNLEARN_LR["adam"], "Table 3's rate of training; few steps"),
              "unlearn_epochs": (8, "at most: REM+ ends after two that are no better"),
              "gamma": (0.05, "few are known, so nearly all of them are removed"),
              "reach": (0.07 if norm else 0.02, f"distance of step 2 {'with' if norm else 'without'} BatchNorm"),
              "ratio": (0.25, "theta_o2 as wide as a quarter of the network")}
    read = [*READ, *(f.name for f in fields(Settings) if f.name not in READ)]
    if idle := [name for name in given if name not in read]:
        raise ValueError(f"a repair reads no setting {idle[0]!r}; did you mean {nearest(idle[0], read)!r}?")
    config = Config(**{**{name: value for name, (value, _) in chosen.items()}, **given})
    return config, [f"{name} {value} ({reason})" for name, (value, reason) in chosen.items() if name not in given]


# --- Layers -----------------------------------------------------------------------------------------------------------

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
        if say:
            say(f"theta_o2 beside {what} ({len(grown)} layers)")
        return expanded
    others = f"; {len(refusals) - 1} other choices of layers were refused too" if len(refusals) > 1 else ""
    raise TypeError(f"{refusals[0]}{others}: try --layers")


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


def memory_format_of(model: nn.Module, data: Data | Streamed) -> torch.memory_format:
    """How a network can be given images: channels_last, the faster one, unless it flattens maps by x.view, which takes
    contiguous ones alone."""
    few, weight = torch.arange(min(2, len(data))), next(model.parameters())
    for found in (torch.channels_last, torch.contiguous_format):
        ((_, x, _),) = replace(data, memory_format=found).batches(few, dtype=weight.dtype)
        with eval_mode(model), torch.no_grad(), contextlib.suppress(Exception):
            model(x.to(weight.device))
            return found
    return data.memory_format  # what is wrong shows in the first pass
