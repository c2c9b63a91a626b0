"""What a pass over the data is made of. It imports torch alone, knows no paper, and everything else stands on it.

    batches.py     batches of D_tr, in training order or plain      updates.py    one update, one pass of updates
    scores.py      cross-entropy and accuracy of a network          reference.py  the frozen network of Eq. 2
    modes.py       training and evaluation mode, BatchNorm          streams.py    random numbers
    ranks.py       several processes                                checks.py     refusals, with what was found
    admission.py   which networks can be expanded                   ending.py     when REM ends, and what it returns
    layers.py      layers by kind, and a masked pass                bits.py       a table of bits
    features.py    what a network computes of every image          lines.py      how far weights have moved
    choices.py     settings of ours

The paper's files take their names from here; `engine.<file>` has the rest.
"""

from engine.admission import (MISFIT, check_network, check_same, followed_layers, is_norm, is_weight, naming_errors,
                              self_check)
from engine.batches import batches_of, first_inputs
from engine.bits import MaskTable, draw_bits
from engine.checks import (check_forget, check_index, check_sets, checked, finite_weights, positive, settings_from,
                           warn_above)
from engine.choices import Choices
from engine.ending import Never, Repaired, start_over
from engine.layers import MaskedPass, channels_of, initialiser, run_pass, run_with, swap
from engine.lines import Line
from engine.modes import copy_of, eval_mode, modes_of, passing_mode, put_modes, refresh_batchnorm, training_mode
from engine.reference import Reference
from engine.scores import accuracy_of, believed, cross_entropy
from engine.streams import stream, undisturbed
from engine.updates import logits_of, make_optimizer, one_pass, report
