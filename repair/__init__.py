"""Beyond the paper: repair a classifier of one's own from some known bad training images.

    repaired = repair(model, data, forget)

    command.py   `run.py repair`                       network.py     any network: settings, layers, REM
    inputs.py    the user's folder and lists           images.py      image files, decoded
    networks.py  networks by name                      checkpoints.py files of weights, read safely
    mismatch.py  whether network and folder fit        suspects.py    what was not discovered
    ranking.py   both rankings in one, and a cut       sheets.py      the list of suspects
    outputs.py   what is written, and where            page.py        the page to open, in the frame page.html
    state.py     going on after an interruption
"""

from repair.network import repair  # noqa: F401
