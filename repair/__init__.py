"""Beyond the paper: repair a classifier of one's own from some known bad training images.

    found = repair(model, data, forget)       # found.network, found.verdict, found.ranking

    command.py   `run.py repair`                       pipeline.py    `repair`: before, REM+, finish, after, verdict
    network.py   any network: settings, layers, REM+
    inputs.py    the user's folder of images           lists.py       lists of bad images and of true labels
    images.py    image files, decoded                  checkpoints.py files of weights, read safely
    mismatch.py  whether network and folder fit        suspects.py    what was not discovered
    looks.py     images that look like the known bad   ranking.py     both rankings in one, and a cut
    outputs.py   what is written, and where            page.py        the page to open, in the frame page.html
    state.py     going on after an interruption        class_order.py the order of the classes, by matching
    progress.py  how far long work has come            channels.py    networks of grey images
    truths.py    true labels that are known            verdict.py     repaired, not repaired or harmed
    networks_by_name.py    ours, torchvision's, timm's, a file's
    suspects_list.py       suspects.csv, and what its user says in it
    impure.py    listed images that are perhaps good
    finish.py    the network from before, without what is likely bad
    account.py   what is written and told at the end
"""

from repair.pipeline import repair  # noqa: F401
