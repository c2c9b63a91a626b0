"""REM+ with the finish of `repair` as a method of the plane: the original network once more, without what is likely bad.

    python run.py --task poison --discovery 0.1 --method rem-plus,examples/rem_plus_finished.py:rem_plus_finished
"""

from baselines import rem_plus_by_config
from repair.finish import finish


def rem_plus_finished(model, data, forget, config, generator, log=None):
    """REM+, then `repair.finish.finish`: eight epochs of training, twice, at a rate and for epochs of its own."""
    repaired = rem_plus_by_config(model, data, forget, config, generator, log=log)
    return finish(model, repaired, data, forget, config).model
