"""A repair from end to end, in one list of steps: what `run.py repair` does between reading files and writing them.

    found = repair(model, data, forget)          # found.network, found.verdict.line(), found.ranking

The training images are passed over twice beside REM+ and the finish: once by the network before (`see`), which gives
predictions, margins and features, and once by the one after, which gives logits.
"""

import math
import warnings
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from engine.checks import NonFiniteLoss, check_forget, first_line
from engine.features import gather, penultimate
from experiment.console import progress
from experiment.data import Data, Streamed
from experiment.settings import Config
from metrics import predict
from repair.finish import Finished, logits
from repair.finish import finish as finish_repair
from repair.impure import look_good
from repair.inputs import room_for_images
from repair.looks import crossed, looking_alike, probe
from repair.network import memory_format_of, unlearn, unwrapped
from repair.suspects import Ranking, rank
from repair.truths import check_truths
from repair.verdict import REPAIRED, Verdict, check_learnt, judge, undoubted

AT_ONCE = 5  # copies of the features that the probes hold at once, at most
PIXELS = 2**24  # of the images of one batch in a pass without a gradient


class Seen(NamedTuple):
    """What the network before a repair makes of the images."""

    called: torch.Tensor  # (N,) int64, predicted classes
    margins: torch.Tensor  # (N,) float64, `margin`
    features: torch.Tensor | None  # (N, d) float64; None where they are not to be had
    missing: str = ""  # why they are not, if something failed
    heldout: torch.Tensor | None = None  # predicted classes of held-out images, if there are any


class Looks(NamedTuple):
    """How much each image looks like D_f to the network before the repair."""

    similar: torch.Tensor | None  # (N,) `looks.probe`
    crossed: torch.Tensor | None  # (N,) `looks.crossed`, to probes that do not know the image
    alike: torch.Tensor  # (N,) bool, `looks.looking_alike`
    missing: str = ""  # why there are none, if something failed


class Repaired(NamedTuple):
    """A repaired network, its verdict, and what that rests on."""

    network: nn.Module  # plain, of the keys, shapes and dtypes of the original, in its modes
    verdict: Verdict
    ranking: Ranking | None  # the images outside D_f, most suspect first; None where they could not be ranked
    finished: Finished | None  # what the finish did; None: there was none
    config: Config  # the settings that were used
    before: list[torch.Tensor | None]  # predicted classes, (N,) int64, of the training and of the held-out images
    after: list[torch.Tensor | None]  # the same by the repaired network
    unranked: str = ""  # why there is no ranking
    doubted: torch.Tensor | None = None  # (d,) int64, the listed images that look like good ones, see impure.py


def repair(model: nn.Module, data: Data | Streamed, forget: torch.Tensor, *, heldout: Data | Streamed | None = None,
           true_labels: torch.Tensor | None = None, force: bool = False, finish: bool = True,
           before: Seen | None = None, save=None, quiet: bool = False, say=None, **more) -> Repaired:
    """Repair a trained classifier, by REM+ and the finish, from some known bad examples, and judge the repair.

    Args:
        model: any network that `expand` takes, also inside DataParallel or compiled; left as it is.
        data: all training images, labels as the network was trained on them, in memory or Streamed.
        forget: (k,) int64 indices of the known bad ones; neither empty nor all.
        heldout: images that were not trained on, by which harm is seen best.
        true_labels: (k,) int64, the true label of each of `forget`, -1 where unknown; they are taught.
        force: go on where the network does not give the known bad ones their labels.
        finish: whether to finish (finish.py); False leaves REM+'s network.
        before: what `see` gave of this network and these images, where that pass has been made.
        save: called with REM+'s network and with the finished one as each is there, so that what fails later costs no
            weights.
        quiet: give no warning, since the caller shows the verdict.
        say: called with lines of text about choices; where it is given, each epoch prints a line. None: silent.
        more: of network.unlearn: layers, keep and so on, and settings such as unlearn_epochs=2.
    Returns: Repaired; the command gives the same network and verdict on the same images, list and settings.
    Warns: with the verdict's line where it is not REPAIRED.
    Raises: ValueError: forget, a true label or a setting cannot be used, or the network has not learnt the known bad
        images; TypeError: no choice of layers can be expanded; NonFiniteLoss: the rate is too high.
    """
    model, forget, labels = unwrapped(model), check_forget(forget, len(data)), data.labels.cpu()
    truths = check_truths(true_labels, forget, labels, data.classes)
    data, heldout = in_its_format(model, data), heldout and in_its_format(model, heldout)
    before = before or see(model, data, heldout)
    if not force:
        check_learnt(labels, before.called, forget)
    network, config = unlearn(model, data, forget, true_labels=truths, say=say, **more)
    if save:
        save(network)
    looks = looks_of(before, labels, forget, config.seed)
    doubted = look_good(forget, before.margins, looks.crossed, looks.alike)
    finished = None
    if finish and config.unlearn_epochs:
        with progress("finish", quiet=say is None) as log:
            finished = finish_repair(model, network, data, forget, config, true_labels=truths, alike=looks.alike,
                                     log=log)
        network = finished.model
        if say:
            say(finished.line)
        if save:
            save(network)
    z = logits(network, data)  # (N, C)
    after = [z.argmax(dim=1), heldout and predicted(network, heldout)]
    verdict = judge(labels, before.called, after[0], forget,
                    undoubted(labels, forget, before.margins, looks.similar, looks.alike),
                    heldout and (heldout.labels.cpu(), before.heldout, after[1]), truths)
    if not quiet and verdict.words != (REPAIRED,):
        warnings.warn(verdict.line(), stacklevel=2)
    ranking, unranked = ranked(z, labels, forget, looks)
    return Repaired(network, verdict, ranking, finished, config, [before.called, before.heldout], after, unranked,
                    doubted)


def in_its_format(model: nn.Module, data: Data | Streamed) -> Data | Streamed:
    """The same images in the memory format that a network can be given."""
    return replace(data, memory_format=memory_format_of(model, data))


def predicted(model: nn.Module, data: Data | Streamed) -> torch.Tensor:
    """(N,) int64 classes that a network gives, in batches that fit into memory."""
    return predict(model, data, size=max(16, PIXELS // math.prod(data.shape)))


# --- Before -----------------------------------------------------------------------------------------------------------

def see(model: nn.Module, data: Data | Streamed, heldout: Data | Streamed | None = None) -> Seen:
    """What a network makes of all images, by one pass over each of both; no features where they would fill the memory,
    or where they fail.

    Raises: NonFiniteLoss: a logit is not finite; ValueError: an image cannot be read.
    """
    missing = ""
    try:
        found = look(model, data, in_room(model, data))
    except NonFiniteLoss:
        raise
    except Exception as error:
        found, missing = look(model, data, False), first_line(error)
    return Seen(*found, missing, heldout and predicted(model, heldout))


def look(model: nn.Module, data, with_features: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(N,) int64 classes, (N,) float64 margins and (N, d) float64 features of one pass; without them None."""
    with penultimate(model) as both:
        def outputs(x, y):
            z, h = both(x) if with_features else (model(x), None)
            z = z.double()  # (B, C)
            if not z.isfinite().all():
                raise NonFiniteLoss("the network's logits are not finite; lower the rate, or look at the inputs")
            found = torch.stack([z.argmax(dim=1).double(), margin(z, y)], dim=1)
            return found if h is None else torch.cat([found, h], dim=1)

        found = gather(model, data, None, outputs)  # (N, 2 + d)
    return found[:, 0].long(), found[:, 1].clone(), found[:, 2:].contiguous() if with_features else None


def margin(z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logit margin max_{k != y} z_k - z_y, (N,), of logits (N, C) and labels (N,)."""
    own = labels[:, None]
    return z.scatter(1, own, -torch.inf).amax(dim=1) - z.gather(1, own)[:, 0]


def in_room(model: nn.Module, data) -> bool:
    """Whether there is memory for the features of all images."""
    layers = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if not layers:
        return False
    need = AT_ONCE * 8 * len(data) * layers[-1].shape[1]  # bytes, in float64
    return need <= room_for_images(torch.device("cpu"))


def looks_of(seen: Seen, labels: torch.Tensor, forget: torch.Tensor, seed: int) -> Looks:
    """Looks of all images; where there are no features, or the probes fail, no similarity and no image that is alike:
    the finish and the verdict do without."""
    none = Looks(None, None, torch.zeros(len(labels), dtype=torch.bool), seen.missing)
    if seen.features is None:
        return none
    try:
        alike = looking_alike(seen.features, labels, forget, seed)
        return Looks(probe(seen.features, forget), crossed(seen.features, forget), alike)
    except Exception as error:
        return none._replace(missing=first_line(error))


# --- After ------------------------------------------------------------------------------------------------------------

def ranked(z: torch.Tensor, labels: torch.Tensor, forget: torch.Tensor, looks: Looks) -> tuple[Ranking | None, str]:
    """The suspects by logits z (N, C) of the repaired network, or None and why they cannot be ranked."""
    if looks.missing:
        return None, looks.missing
    try:
        return rank(z, labels, forget, looks.similar, looks.crossed), ""
    except Exception as error:  # a repair that is done is not lost for it
        return None, first_line(error)
