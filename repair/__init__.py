"""Beyond the paper: repair a classifier of one's own from some known bad training images.

    repaired = repair(model, data, forget)

    command.py   `run.py repair`                       network.py     any network: settings, layers, REM
    inputs.py    the user's folder and lists           images.py      image files, decoded
    networks.py  networks by name                      checkpoints.py files of weights, read safely
    mismatch.py  whether network and folder fit        suspects.py    what was not discovered
    ranking.py   both rankings in one, and a cut       sheets.py      the list of suspects
    outputs.py   what is written, and where            page.py        the page to open, in the frame page.html
    state.py     going on after an interruption        class_order.py the order of the classes, by matching
    progress.py  how far long work has come            channels.py    networks of grey images
    truths.py    true labels that are known            verdict.py     repaired, not repaired or harmed
    finish.py    the network from before, without what is likely bad
    account.py   what is told at the end
"""

from repair.verdict import judged_repair as repair  # noqa: F401
