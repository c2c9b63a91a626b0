"""Lines that say how far long work has come, so that nobody takes it for hung; of short work there are none.

    with Watch("decoding the images", print) as watch:
        watch.begin(len(paths))
        watch.step()                                # after each; any thread may
    with Watch("epoch 1/4", say) as watch:
        for batch in watch.over(data).batches():    # counted by themselves
            watch.say("a line of the work's own")   # which counts as a sign of life, too
"""

import contextlib
import threading
import time

FIRST, MOST = 5.0, 60.0  # seconds without a line before the first one, and before a later one at most


class Watch:
    """Says a line whenever nothing was said for some seconds, twice as long after each such line up to MOST.

    The lines come from a thread of its own, so that one step that takes long is told as well. `what` may change.
    """

    def __init__(self, what: str, say, first: float = FIRST):
        """Args: what: is being done, as a line begins; say: called with a line; None: silent; first: seconds."""
        self.what, self.tell, self.patience = what, say, first
        self.total, self.done, self.unit, self.epochs = None, 0, "", None
        self.start = self.began = self.last = time.monotonic()
        self.over_with, self.lock = threading.Event(), threading.Lock()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self):
        if self.tell is not None:
            self.thread.start()
        return self

    def __exit__(self, *error):
        self.over_with.set()
        if self.thread.is_alive():
            self.thread.join(1.0)  # a line that is being written may wait for its reader

    def begin(self, total: int | None, unit: str = "") -> None:
        """A part of the work begins that has so many steps, or an unknown number; unit: what they are."""
        self.began, self.total, self.done, self.unit = time.monotonic(), total, 0, unit

    def step(self, count: int = 1) -> None:
        """So many steps more are done."""
        with self.lock:
            self.done += count

    def epoch(self, done: int, of: int) -> None:
        """So many epochs of so many are done, of the whole work."""
        self.epochs = done, of, time.monotonic()

    def say(self, text: str) -> None:
        """Say a line of the work itself."""
        self.last = time.monotonic()
        if self.tell is not None:
            self.tell(text)

    def over(self, data):
        """The same data, the passes over which are parts of this work."""
        return Watched(data, self)

    def line(self) -> str:
        """How far it is, with the time left of the whole, where it goes by epochs, and of this part as far as that can
        be told."""
        now = time.monotonic()
        text = f"{self.what}: {now - self.start:.0f} s"
        if self.epochs:
            done, of, since = self.epochs
            left = (since - self.start) / done * of - (now - self.start)
            text += f", {done} of {of} epochs, about {max(0.0, left):.0f} s left"
        if not self.total:
            return text
        text += f", {self.done:,} of {self.total:,}{self.unit}"
        if not 0 < self.done <= self.total:
            return text
        left = (now - self.began) / self.done * (self.total - self.done)
        return f"{text}, about {left:.0f} s left of these"

    def watch(self) -> None:
        """What the thread does."""
        with contextlib.suppress(OSError, ValueError):  # stdout is gone or closed; the work itself will say so
            while not self.over_with.wait(max(0.05, self.last + self.patience - time.monotonic())):
                if time.monotonic() >= self.last + self.patience:
                    self.say(self.line())
                    self.patience = min(MOST, 2 * self.patience)


def tell_here(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


class Watched:
    """Data whose passes count in a Watch; everything else is the data's own."""

    def __init__(self, data, watch: Watch):
        self.data, self.counts = data, watch

    def __len__(self):
        return len(self.data)

    def __getattr__(self, name: str):
        return getattr(self.data, name)

    def batches(self, index=None, *args, **more):
        """A pass of the data, batch by batch; what it draws is drawn now, as in the data's own."""
        n = len(self) if index is None else len(index)
        return self.counted(self.data.batches(index, *args, **more), n)

    def counted(self, batches, n: int):
        """The batches, counted; n: images in them."""
        self.counts.begin(n, " images of a pass")
        for batch in batches:
            yield batch
            self.counts.step(len(batch[0]))  # when the next one is asked for: what is done is told, not what is begun
