"""Which cells a grid has: axes, the paper's presets, the original network that each cell starts from (Tables 1-9).

    cells = expand_axes({"task": "poison,random", "discovery": "0.1:1.0:0.1", "seed": "0,1,2", "etd": "both"})
    cells = preset("table1", {"dataset": "cifar10"})
    groups = by_original(cells)                    # [(settings of an original network, its cells), ...]
"""

import itertools
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path

from engine.checks import kind_of
from experiment.console import flag
from experiment.methods import MASKS, METHODS, check_names, allowed_with, reads_setting
from experiment.settings import AFTER_TRAINING, Config, OF_THE_RUN, resolve
from study.rows import SETTINGS, cell_key
from tasks import TASKS

LISTED = {"task", "dataset", "arch", "capacity", "seed", "method", "etd", "discovery"}  # of an overview

# --- Presets: the paper's tables and figures --------------------------------------------------------------------------
# `rem` is Algorithm 1 as printed, with the paper's ten epochs on its data sets. REM+ runs where it is named.

RATES = "0.1:1.0:0.1"
WHOLE_PLANE = {"task": "all", "discovery": RATES, "seed": "0,1,2", "capacity": "0.5", "etd": "both"}
RESNET = {**WHOLE_PLANE, "dataset": "cifar10", "arch": "resnet9"}
VIT = {**WHOLE_PLANE, "dataset": "svhn", "arch": "vit"}
IMAGENETTE = {**WHOLE_PLANE, "dataset": "imagenette", "arch": "resnet9", "n": "100"}
ALPHAS = "0.001,0.01,0.1,10"  # Table 3; compared at one, 0.01, with the best of each cell beside it
RIVALS = "no-ul,retrain,cf,ascent,npo,scrub,badt,potion"
MAIN = {"method": "no-ul,retrain,ascent,npo,scrub,badt,potion,rem", "alpha": ALPHAS}
WITH_CF = {"method": f"{RIVALS},rem", "alpha": ALPHAS}
PRESETS = {
    "table1": [{**RESNET, **MAIN}, {**VIT, **MAIN}],
    "table2": [{**RESNET, "method": "rem,rem-no31,rem-no32"}],
    "table4": [{**RESNET, **WITH_CF}, {**RESNET, **WITH_CF, "capacity": "1.0", "etd": "off"}],
    "table5": [{**VIT, **WITH_CF}, {**VIT, "capacity": "1.0", "etd": "off", "method": "no-ul,ascent"}],
    "table6": [{**IMAGENETTE, **MAIN, "etd": "off"}],
    "table7": [{**IMAGENETTE, **MAIN, "etd": "on", "capacity": "0.9"},
               {**IMAGENETTE, "method": "retrain", "etd": "off", "capacity": "0.9"}],
    "table8": [{**RESNET, **MAIN, "etd": "on", "p_mem": "0.05"}, {**RESNET, "method": "retrain", "etd": "off"}],
    "table9": [{**VIT, **MAIN, "etd": "on", "p_mem": "0.05"}, {**VIT, "method": "retrain", "etd": "off"}],
    "fig3": [{**RESNET, **WITH_CF, "method": f"{RIVALS},rem,rem-ideal", "etd": "off"},
             {**RESNET, "method": "no-ul", "etd": "on"},
             {**RESNET, **WITH_CF, "method": RIVALS, "capacity": "1.0", "etd": "off"}],
    "fig5": [{**RESNET, "task": "poison", "discovery": "0.5", "etd": "off", "method": "rem", "unlearn_epochs": "5",
              "curve": "on"}],
    "fig8": [{**RESNET, "discovery": "1.0", "method": "no-ul", "capacity": "0.1,0.2,0.3,0.5,0.7,0.9"},
             {**RESNET, "discovery": "1.0", "method": "no-ul", "capacity": "1.0", "etd": "off"}],
    "quick": [{"task": "all", "discovery": "0.1,0.5,1.0", "method": "no-ul,cf,npo,rem,rem-plus", "seed": "0"}],
}


def preset(name: str, given: dict[str, str]) -> list[Config]:
    """Cells of a table or figure of the paper, what is `given` in place of its own values; ValueError if unknown."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    return expand_axes(given, PRESETS[name])


# --- Axes -------------------------------------------------------------------------------------------------------------

def expand_axes(axes: dict[str, str], blocks=({},)) -> list[Config]:
    """Every combination of the axes' values as a Config with one method.

    Args: axes: field of Config -> values separated by commas; numbers also as first:last:step, tasks and methods also
        as all, switches as on, off or both; blocks: of a preset, more axes each, of which `axes` takes the place.
    Returns: cells in the order of seeds, networks and tasks, then discovery, then method, each once. A method is left
        out where it has no meaning: training again on an ETD-trained network, rem-on-etd without one. Several values of
        a setting make cells of those methods alone that read it.
    Raises: ValueError for an unknown field, a value that does not parse or is out of range, a method without a cell.
    """
    kinds = {f.name: f for f in fields(Config)}
    if unknown := sorted(set(axes) - set(kinds)):
        raise ValueError(f"unknown axis {unknown[0]!r}; choose from {', '.join(kinds)}")
    cells = {}
    for block in blocks:
        values = {name: parse_axis(kinds[name], text) for name, text in {**block, **axes}.items()}
        values.setdefault("method", Config.method.split(","))
        slow = [name for name in values if name not in AFTER_TRAINING]  # an original's settings change least often
        names = [*slow, *(name for name in values if name in AFTER_TRAINING and name != "method"), "method"]
        for choice in itertools.product(*(values[name] for name in names)):
            setting = dict(zip(names, choice, strict=True))
            if allowed_with(setting["method"], setting.get("etd", Config.etd)):
                resolve(setting)  # a value out of range is an error for methods that do not read it, too
                read = [name for name in names if reads_setting(name, setting) or len(values[name]) == 1]
                cell = resolve({name: setting[name] for name in read})  # others at their default
                cells.setdefault(cell_key(cell), cell)  # of twins the first
    named = {part.strip() for part in axes.get("method", "").split(",") if part.strip()} - {"all"}
    if idle := sorted(named - {cell.method for cell in cells.values()}):
        hint = "add --etd on or both" if allowed_with(idle[0], True) else "it trains anew, so leave out --etd on"
        raise ValueError(f"{idle[0]} fits none of these cells; {hint}")
    return list(cells.values())


def parse_axis(field, text: str) -> list:
    """The values of one axis, in order, each once; ValueError with the text that does not parse."""
    kind = kind_of(field)
    if kind is bool:
        switches = {"on": [True], "off": [False], "both": [False, True]}
        if text not in switches:
            raise ValueError(f"{flag(field.name)} is {text!r}; choose on, off or both")
        return switches[text]
    if field.name == "pair":
        return [text]  # holds a comma itself
    parts = [part.strip() for part in text.split(",") if part.strip()]
    texts = [value for part in parts for value in (parse_names if kind is str else parse_range)(field.name, part)]
    try:
        found = list(dict.fromkeys(map(kind, texts)))
    except ValueError as error:
        hint = f"it takes {kind.__name__} values such as 1,2 or 1:3:1"
        raise ValueError(f"{flag(field.name)} is {text!r}; {hint}") from error
    if not found:
        raise ValueError(f"{flag(field.name)} is empty; give at least one value")
    if field.name == "method":
        check_names(found)
    return found


def parse_names(name: str, text: str) -> list[str]:
    """A name, or every name where it is "all" of the tasks or methods."""
    every = {"task": TASKS, "method": [name for name, method in METHODS.items() if method.in_all]}
    return list(every[name]) if text == "all" and name in every else [text]


def parse_range(name: str, text: str) -> list[str]:
    """A number as it is, or first:last:step in decimals, both ends in it: 0.1:0.3:0.1 is 0.1, 0.2, 0.3 as typed."""
    if ":" not in text:
        return [text]
    try:
        first, last, step = (Decimal(part) for part in text.split(":"))
        steps = (last - first) / step if step > 0 else Decimal(-1)
        count = int(min(steps, Decimal(100_000))) + 1 if steps >= 0 else 0
        if not step.is_finite():
            raise ValueError("the step is not finite")
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"{flag(name)} is {text!r}; a range is first:last:step, such as 0.1:1.0:0.1") from error
    if count > 100_000:
        raise ValueError(f"{flag(name)} is {text!r}; a range of more than 100,000 values is taken for a mistake")
    if count < 1:
        raise ValueError(f"{flag(name)} is {text!r}; a range rises from first to last by a step above 0")
    return [str(first + i * step) for i in range(count)]


# --- Originals --------------------------------------------------------------------------------------------------------

def original_of(config: Config) -> Config:
    """The cell's settings, what its original does not depend on at its default; no method, unless it trains alone."""
    alone = config.method in METHODS and METHODS[config.method].trains_alone
    unread = AFTER_TRAINING | {"out"} | (set() if alone or config.etd else MASKS)
    return replace(config, **{name: SETTINGS[name] for name in unread} | {"method": config.method if alone else ""})


def by_original(cells: list[Config]) -> list[tuple[Config, list[Config]]]:
    """Cells grouped by the original network that they share, groups and cells in the order given."""
    groups = {}
    for cell in cells:
        original = original_of(cell)
        groups.setdefault(cell_key(original), (original, []))[1].append(cell)
    return list(groups.values())


# --- What there is to do ----------------------------------------------------------------------------------------------

def overview(groups, remaining, rows: dict[str, dict], every: bool = False) -> str:
    """A line per original network: its cells, how many are done, failed and left; then the sum.

    Args: groups: [(original, cells)] of the whole grid, or of one rank of it; remaining: the same without the cells
        that are done; rows: cell key -> row; every: list every cell below its original.
    """
    left, total = {cell_key(cell) for _, cells in remaining for cell in cells}, [0] * 4
    names = [f"{o.arch} {100 * o.capacity:g}% " + (o.method or ("trained with etd" if o.etd else "")) + more
             for (o, _), more in zip(groups, differences([original for original, _ in groups]), strict=True)]
    line = "{:<11}{:<15}{:<%d}{:>4}{:>7}{:>6}{:>8}{:>6}" % max([41, *(len(name) + 2 for name in names)])
    lines = [line.format("task", "data set", "network", "seed", "cells", "done", "failed", "left")]
    for (original, cells), name in zip(groups, names, strict=True):
        states = [rows[key]["status"] if (key := cell_key(cell)) in rows else "" for cell in cells]
        counts = [len(cells), states.count("ok"), states.count("failed"), sum(cell_key(cell) in left for cell in cells)]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(line.format(original.task, original.dataset, name, original.seed, *counts))
        for cell, state, more in zip(cells, states, differences(cells), strict=True) if every else ():
            state = ", ".join(filter(None, [state.replace("ok", "done"), "left" if cell_key(cell) in left else ""]))
            text = f"  {cell.discovery:<7g}{Path(cell.method).name:<20}{more}  "
            lines.append(text.ljust(len(lines[0]) - len(state)) + state)
    return "\n".join([*lines, line.format("all", "", "", "", *total)])


def differences(configs: list[Config]) -> list[str]:
    """Of each those settings, as they are typed, that its method reads and in which they differ."""
    read = [{name: getattr(c, name) for name in SETTINGS if reads_setting(name, vars(c))} for c in configs]
    names = [name for name in SETTINGS if len({mine[name] for mine in read if name in mine}) > 1]
    names = [name for name in names if name not in LISTED | OF_THE_RUN]
    return ["".join(f" {flag(name)[2:]} {mine[name]}" for name in names if name in mine) for mine in read]
