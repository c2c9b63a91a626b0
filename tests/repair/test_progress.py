"""Lines of progress (repair/progress.py): what takes long says how far it is, what is short says nothing."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from colours import ROOT, add_to_net, call, colours, words  # noqa: F401
from helpers import assert_same_state, gen, make_data, small_net, streamed
from repair import images, network, progress
from repair.images import in_threads
from repair.network import repair_quietly
from repair.progress import Watch

pytestmark = pytest.mark.filterwarnings("ignore:Acc")

FORGET = torch.tensor([1, 5])


def test_a_line_says_how_far_it_is():
    """P1: what is done, how much of it, and the time left of this part and, where it goes by epochs, of all; of unknown
    steps the time alone."""
    lines = queue.Queue()

    def next_line() -> str:  # of those that are said from now on
        while not lines.empty():
            lines.get()
        return lines.get(timeout=30)

    with Watch("decoding", lines.put, first=0.01) as watch:
        assert re.fullmatch(r"decoding: \d+ s", next_line())
        watch.begin(2000, " images")
        watch.patience = 0.01
        assert re.fullmatch(r"decoding: \d+ s, 0 of 2,000 images", next_line())
        watch.began -= 10.0  # as if it had begun ten seconds ago
        watch.step(500)
        watch.patience = 0.01
        line = next_line()
    assert re.fullmatch(r"decoding: \d+ s, 500 of 2,000 images, about 3\d s left of these", line)
    assert not watch.thread.is_alive()  # so that no line comes afterwards
    watch.start -= 100.0
    watch.epoch(2, 8)
    assert re.match(r"decoding: 1\d\d s, 2 of 8 epochs, about 3\d\d s left, 500 of 2,000 images, about ", watch.line())
    watch.epoch(8, 8)
    watch.start -= 100.0  # longer than the epochs took
    assert ", 8 of 8 epochs, about 0 s left, " in watch.line()


def test_lines_become_rare_and_short_work_is_silent():
    """P1: nothing before the first seconds are over, then ever longer pauses; a line of the work's own counts."""
    lines = queue.Queue()

    def say(line):  # with the pause that came before it
        lines.put((line, watch.patience))

    assert Watch("work", say).patience == progress.FIRST == 5
    with Watch("work", say, first=0.01) as watch:
        pauses = [lines.get(timeout=30)[1] for _ in range(4)]
    assert pauses == pytest.approx([0.01, 0.02, 0.04, 0.08])
    before = watch.last
    watch.say("mine")
    assert lines.queue[-1][0] == "mine" and watch.last > before
    with Watch("work", None, first=0.01) as silent:
        silent.say("nobody hears it")
    assert not silent.thread.is_alive()


def test_a_reader_that_is_gone_ends_nothing():
    """P1: a closed stdout ends the lines, not the work; the work itself finds out when it prints."""
    asked = threading.Event()

    def say(line):
        asked.set()
        raise BrokenPipeError

    with Watch("work", say, first=0.01):
        assert asked.wait(30)
    with pytest.raises(BrokenPipeError):
        with Watch("work", say) as watch:
            watch.say("mine")


@pytest.mark.parametrize("read", [lambda data: data, streamed])
def test_watched_data_is_the_data(read):
    """P7, P1: passes, draws and attributes are the data's own, and every image is counted."""
    data, watch = read(make_data(0, n=25, classes=4, pad=1, flip=True)), Watch("work", None)
    seen = watch.over(data)
    assert len(seen) == 25 and seen.shape == data.shape and seen.augments and seen.labels is data.labels
    one, other = gen(3), gen(3)
    for index, augment in ((None, True), (torch.tensor([4, 2, 9]), True), (None, False)):
        batches = seen.batches(index, size=5, generator=one, augment=augment)
        wanted = data.batches(index, size=5, generator=other, augment=augment)
        assert torch.equal(one.get_state(), other.get_state())  # drawn when it is asked for
        taken = 0
        for mine, its in zip(batches, wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))
            taken += len(mine[0])
        assert watch.done == taken and watch.total == (25 if index is None else 3)
    with pytest.raises(ValueError, match="out of range"):
        seen.batches(torch.tensor([25]))


def test_a_repair_tells_batches_within_the_first_epoch(monkeypatch):
    """P1: where the choice of layers or an epoch takes long, lines come before the epoch's own; no weight changes."""
    made = []

    def quick(what, say):
        made.append(what)
        return Watch(what, say, first=0.01)

    data, lines = make_data(0, n=1200), []
    settings = dict(unlearn_epochs=2, batch=8, stop="max")  # an epoch takes a while
    wanted = repair_quietly(small_net(0), data, FORGET, **settings)
    monkeypatch.setattr(network, "Watch", quick)  # so that a fraction of a second is long
    monkeypatch.setattr(progress, "MOST", 0.01)
    found = repair_quietly(small_net(0), data, FORGET, say=lines.append, **settings)
    assert_same_state(found, wanted)
    assert made == ["choosing layers for theta_o2", "epoch 1/2 is under way"]
    first = next(i for i, line in enumerate(lines) if line.startswith("epoch 1/2: "))
    told = [line for line in lines[:first] if line.startswith("epoch 1/2 is under way: ")]
    assert any(re.search(r"\d+ of (1,200|2) images of a pass", line) for line in told)
    assert any(line.startswith("epoch 2/2 is under way: ") for line in lines[first:])


def test_threads_do_all_the_work_and_stop_at_an_error():
    """P1: every image once, whatever the number of threads; after an error no further one is begun."""
    for workers in (0, 1, 3, 10**12):
        done, steps = [], []
        in_threads(done.append, 50, workers, lambda: steps.append(1))
        assert sorted(done) == list(range(50)) and len(steps) == 50
    begun = []

    def work(i):
        begun.append(i)
        if i == 3:
            raise MemoryError
        time.sleep(0.01)

    with pytest.raises(MemoryError):
        in_threads(work, 10_000, 2, lambda: None)
    assert len(begun) < 1000


def test_decoding_is_counted(monkeypatch, capsys):
    """P1: decoding says how many images it has."""
    monkeypatch.setattr(images, "Watch", lambda what, say: Watch(what, say, first=0.01))
    monkeypatch.setattr(images, "pixels", lambda *args: time.sleep(0.01) or 0)  # in place of a file
    images.decode([None] * 72, images.Reading(32), 1)
    assert re.search(r"decoding the images: \d+ s, \d+ of 72 images", capsys.readouterr().out)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

LINGERING = """
import os, time
class Lingering(nn.Module):
    def forward(self, x):
        time.sleep(1 if os.path.exists("STATE") else 0.05)  # it does not end before it is interrupted
        return x
def lingering(classes): return colours(classes, Lingering())
"""


@pytest.mark.slow
@pytest.mark.parametrize("after, kept", [
    ("2 lines, 2 matched", False), ("theta_o2 beside", False), ("epoch 1/3: ", True)])
def test_an_interrupt_anywhere_is_one_line_and_keeps_the_state(colours, capsys, monkeypatch, after, kept):
    """P1, P9, A8: while images are decoded, after layers were chosen and while batches run, Ctrl-C of all processes is
    one line and exit code 130; the state of the last epoch stays, from which another process goes on, bit for bit."""
    state = colours["--out"].with_suffix(".state")
    path = add_to_net(colours, LINGERING.replace("STATE", str(state)))
    world = {**colours, "--model": f"{path}:lingering"}
    more = ("--epochs", 3, "--stop", "max", "--no-finish", "--batch-size", 8, "--workers", 1, "--max-memory", 0,
            "--device", "cpu")
    process = subprocess.Popen([sys.executable, "-B", "-u", "run.py", *words(world, *more)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while after not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        while kept and not state.exists():  # it is written after the line
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        lines = [line for line in process.stderr.read().splitlines() if not line.startswith("warning: ")]
    finally:
        process.kill()
        process.communicate()
    assert len(lines) == 1 and lines[0].startswith("run.py: interrupted; ")
    assert [path.name for path in state.parent.iterdir()] == [state.name] * kept
    if kept:
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        assert call(world, *more) in (0, 3) and "going on after epoch" in capsys.readouterr().out
        whole = state.with_name("whole.pt")
        assert call({**world, "--out": whole}, *more) in (0, 3) and "going on" not in capsys.readouterr().out
        assert whole.read_bytes() == colours["--out"].read_bytes()
