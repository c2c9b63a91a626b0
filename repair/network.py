"""Repair a trained classifier from some known bad training images, by REM (Sec. 5).

    repaired = repair(model, data, forget)       # any network, Data or Streamed, (k,) indices; gives a plain network
"""

import contextlib
import fnmatch
import math
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from engine.checks import check_forget, first_line, settings_from
from engine.modes import eval_mode
from engine.streams import stream
from etd import Expanded
from expand import expand
from experiment.data import Data, Streamed
from experiment.settings import Config
from rem import State, add_capacity
from rem_plus import MEMORISED, EarlyStopping, Settings, rem_plus
from repair.mismatch import memory_format_of
from repair.networks_by_name import check_parameters
from repair.progress import Watch
from repair.state import bytes_of, marks_of, repair_key, resume, save_state
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
EPOCH = ("epoch {}/{}: {updates} updates of step 2, Acc(D_f) {acc_forget_before:.2f} to {acc_forget:.2f}; loss of "
         "step 3 {loss:.3f}, Acc(held out) {acc_held_out:.2f}; {:.0f} s, at most {:.0f} s left")


def repair_quietly(model: nn.Module, data: Data | Streamed, forget: torch.Tensor, **more) -> nn.Module:
    """`repaired_with` without its settings: a repaired copy, of which no verdict is given."""
    return repaired_with(model, data, forget, **more)[0]


def repaired_with(model: nn.Module, data: Data | Streamed, forget: torch.Tensor, *,
                  true_labels: torch.Tensor | None = None, layers=None, say=None, keep=None, every: int = 1,
                  leave: int | None = None, files=None, **settings
                  ) -> tuple[nn.Module, Config]:
    """A repaired copy of a trained classifier, by REM+ from some known bad examples, and the settings that made it.

    Args:
        model: any network that `expand` takes, also inside DataParallel or compiled; left as it is.
        data: all training images, labels as the network was trained on them, in memory or Streamed.
        forget: (k,) int64 indices of the known bad ones; neither empty nor all.
        true_labels: (k,) int64, the true label of each of them, -1 where unknown; they are taught, see truths.py.
        layers: names or patterns (`*.mlp.0`) of the layers that get theta_o2; None: chosen by `expand_any`.
        say: called with a line of text about each choice, each epoch and, from another thread, about how far a step is
            that takes long; None: silent.
        keep: file for the state after each `every` epochs, from which the same call goes on; None, every=0: no state.
        leave: bytes that a state leaves free on its file system, for what the caller will write; None: the weights'.
        files: the images' files, by which, too, a state knows whether they are the same.
        settings: of settings.Config, over the defaults of `choose_settings`, such as unlearn_epochs=2 or seed=1.
    Returns: a plain network of the keys, shapes and dtypes of `model`, in its modes; the settings, whose reach is the
        one that was used in the end, see `another_reach`.
    Raises: ValueError: forget, a true label or a setting cannot be used; TypeError: no choice of layers can be
        expanded; NonFiniteLoss: the rate is too high.
    """
    say = say or (lambda text: None)
    model, forget = unwrapped(model), check_forget(forget, len(data))
    truths = check_truths(true_labels, forget, data)
    check_parameters(model, "the network")
    data = replace(data, memory_format=memory_format_of(model, data))
    config, reasons = choose_settings(model, len(data), settings)
    for line in reasons:
        say(line)
    expanded = grown(model, data, config, layers, say)
    states = None
    if keep:
        decided = [config, layers] if truths is None else [config, layers, truths.tolist()]
        notes = {"key": repair_key(model, data, forget, *decided), "marks": marks_of(data, files)}
        states = States(keep, every, bytes_of(model.state_dict()) if leave is None else leave, notes)
    if "reach" in settings and "farther" not in settings:
        config = replace(config, farther=0)  # a distance that is given stays
    run = Run(expanded, with_truths(data, forget, truths), forget, config, states, say)
    repaired, state = at_the_right_reach(run, 0 if "reach" in settings or config.stop == "max" else NEARER)
    used = replace(config, reach=state.config.reach)  # which may be that of an earlier run, cut off
    return repaired, used


class States(NamedTuple):
    """Where the states of a repair are kept, and what they are known by."""

    path: Path
    every: int  # epochs between them; 0: none is written
    leave: int  # bytes that one leaves free
    notes: dict  # `repair_key` and `marks_of`


class Run(NamedTuple):
    """What a repair has decided on before Algorithm 1 begins."""

    expanded: Expanded
    data: object  # D_tr, and what true labels add to it
    forget: torch.Tensor  # (k,) int64, D_f
    config: Config
    states: States | None  # None: no state is kept
    say: object  # called with a line


def grown(model: nn.Module, data, config: Config, layers, say) -> Expanded:
    """The network with theta_o2 beside it."""
    example = torch.zeros((2, *data.shape), device=next(model.parameters()).device)
    with Watch("choosing layers for theta_o2", say) as watch:
        expanded = expand_any(model, example, config, layers, watch.say)
    return expanded


def at_the_right_reach(run: Run, nearer: int) -> tuple[nn.Module, State]:
    """REM+, begun again while `another_reach` asks for it; nearer: how often half the distance may be tried."""
    reach, repaired = run.config.reach, None
    state, end = begun(run, reach)
    while repaired is None:
        repaired, other = attempt(run, state, end, reach, nearer)
        if other is not None:
            nearer = nearer - 1 if other < reach else 0
            reach = other
            state, end = begun(run, reach, again=True)
    return repaired, state


def begun(run: Run, reach: float, again: bool = False) -> tuple[State, EarlyStopping]:
    """Algorithm 1's state after step 1, or where an earlier run was cut off, and what decides the end."""
    config = replace(run.config, reach=reach, farther=0 if again else run.config.farther)
    state = add_capacity(run.expanded, run.data, run.forget, settings_from(config, Settings),
                         stream(config.seed, "repair"))
    end = EarlyStopping(state)
    if run.states and not again and (line := resume(state, end, run.states.path, **run.states.notes)):
        run.say(line)
    return state, end


def attempt(run: Run, state: State, end: EarlyStopping, reach: float, nearer: int
            ) -> tuple[nn.Module | None, float | None]:
    """REM+ from a state on: the repaired network and None, or None and the reach to begin again at."""
    began, done, epochs = time.perf_counter(), state.epoch, run.config.unlearn_epochs

    def until(last: int, log=None) -> nn.Module:
        state.config = replace(state.config, unlearn_epochs=last)
        return rem_plus(run.expanded, run.data, run.forget, run.config, state.generator, log=log, state=state, end=end)

    def log(epoch: int, of: int, net, **record) -> None:
        spent = time.perf_counter() - began
        left = spent / (epoch - done) * (epochs - epoch)
        watch.say(EPOCH.format(epoch, epochs, spent, left, **{"acc_held_out": math.nan, **record}))
        watch.what = f"epoch {epoch + 1}/{epochs} is under way"
        keep_state(run, state, end)

    with warnings.catch_warnings(), Watch(f"epoch {done + 1}/{epochs} is under way", run.say) as watch:
        state.data = watch.over(run.data)
        warnings.filterwarnings("ignore", r"Acc\(W\) fell")  # verdict.py judges harm with more to go by
        if not done and epochs:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"Acc\(D_f\) is .* after the returned epoch")  # it is told at the end
                until(1)
            other, why = another_reach(run, state, end, reach, nearer)
            if why:
                run.say(why)
            if other is not None:
                return None, other
            log(1, epochs, state.expanded, **state.record)
        return until(epochs, log), None


def another_reach(run: Run, state: State, end: EarlyStopping, reach: float, nearer: int
                  ) -> tuple[float | None, str | None]:
    """Whether REM+ is to begin again after its first epoch, which did more harm than step 3 can mend or removed
    nothing: the reach, None if not; and a line, also where REM+ has begun again by itself.

    Choice: how far a removal may go depends on the network: of timm's `test_resnet` reach 0.07 leaves accuracies of 0.7
    after ten epochs and 0.03 leaves 0.96, while small networks with BatchNorm lose nothing at 0.07 and keep half of the
    trigger at 0.03 (600 images). So it is taken back by halves where the first epoch ends more than TOO_FAR below the
    untouched network on the images that step 3 left out; the first had lost 0.42 there, those others 0.1 to 0.25. Bad
    images among them count as lost, too, though they should be: so where the nearer removal has come undone within an
    epoch, the farther one is taken.
    """
    if end.held_out is None:
        return None, None
    if nearer and end.untouched - end.acc > TOO_FAR:
        other = state.config.reach / 2
        return other, (f"Acc(held out) is {end.acc:.2f} after the first epoch, {end.untouched:.2f} before it: step 2 "
                       f"went too far; once more, with reach {other:.3g}")
    if reach < run.config.reach and end.acc_forget > TOO_NEAR:
        other = 2 * reach
        return other, (f"Acc(D_f) is {end.acc_forget:.2f} after the first epoch: step 2 was too near; once more, with "
                       f"reach {other:.3g}")
    if state.config.reach > reach:
        return None, (f"Acc(held out) was above {MEMORISED:g} after the first epoch: what the network has memorised "
                      f"was still there; once more, with reach {state.config.reach:.3g}")
    return None, None


def keep_state(run: Run, state: State, end: EarlyStopping) -> None:
    """Write the state of an epoch, where one is due; a full disk, whatever it is told as, costs no repair."""
    states = run.states
    if not states or not states.every or state.epoch % states.every:
        return
    try:
        save_state(state, end, states.path, leave=states.leave, **states.notes)
    except Exception as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        run.say(f"the state of epoch {state.epoch} could not be written to {states.path} ({told})")



def choose_settings(model: nn.Module, n: int, given: dict) -> tuple[Config, list[str]]:
    """Batch, optimiser, its rate and epochs for n training images, and the reason for each; what is given stays.

    Choice: gamma 0.05, below chance for few classes, though Sec. 5 wants it above: of few known images nearly
    all have to change, or the pattern that they share stays.
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
              "reach": (0.07 if norm else 0.02, f"how far step 2 goes {'with' if norm else 'without'} BatchNorm"),
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
