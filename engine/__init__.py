"""What Algorithm 1 and the other methods are made of. It imports torch alone and nothing else of this repository.

    batches.py     batches of D_tr, in training order or plain      updates.py    one update, one pass of updates
    scores.py      accuracy and CE, of the frozen reference too     streams.py    random numbers, and the global state
    modes.py       training and evaluation mode, BatchNorm          admission.py  which networks can be expanded
    masks.py       masks, layers by kind, a masked pass             checks.py     refusals, with what was found
    features.py    what a network computes of every image

rem.py, rem_plus.py, etd.py and expand.py take their names from here; every other file imports from `engine.<file>`.
"""

from engine.admission import check_network, check_same, is_norm, is_weight, naming_errors, self_check
from engine.batches import among, batches_of, count_batches, first_inputs, per_example, trusted
from engine.checks import check_index, check_sets, check_settings, finite_weights, positive, settings_from, warn_above
from engine.masks import MaskedPass, MaskTable, channels_of, draw_bits, initialiser, run_pass, run_with, swap
from engine.modes import copy_of, eval_mode, mode_over_forget, modes_of, put_modes, refresh_batchnorm, training_mode
from engine.scores import Reference, accuracy_of, cross_entropy, right_on
from engine.streams import stream, undisturbed
from engine.updates import logits_of, make_optimizer, one_pass, report
