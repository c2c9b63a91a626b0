"""Batches of D_tr. What REM asks of `data`, D_tr with its labels as given:

    len(data)                   number of training examples, N
    data.batches(index=None, size=512, generator=None, augment=False, dtype=torch.float32)
                                one pass over the examples of `index`, an int64 tensor, or over all of them: yields
                                (index, x, y), (B,) int64 dataset indices on the CPU, inputs of `dtype`, (B,) int64
                                labels; in an order drawn from the generator, or in the order of `index` where
                                there is none
    data.augments               optional: False where augment=True changes nothing, so that the reference runs once
    data.trusted                optional: (m,) int64 examples of D_r whose labels somebody has looked at: they are
                                neither held out nor suspected
"""

import torch


def count_batches(n: int, size: int) -> int:
    """The number of batches in a shuffled pass over n examples.

    BatchNorm in training mode cannot normalise a single example with 1x1 maps, so in a shuffled pass (training) a last
    batch of one example joins the batch before it.
    """
    batches = -(-n // size)
    lone_last = n % size == 1 and n > size > 1
    return batches - 1 if lone_last else batches


def among(index: torch.Tensor, n: int) -> torch.Tensor:
    """(n,) bool on the CPU: which of n examples `index`, (k,) int64 there, names."""
    return torch.zeros(n, dtype=torch.bool, device="cpu").index_fill_(0, index, True)


def trusted(data) -> torch.Tensor:
    """(N,) bool, the examples whose labels somebody has looked at; of most data none."""
    index = getattr(data, "trusted", None)
    return among(torch.empty(0, dtype=torch.int64) if index is None else index, len(data))


def first_inputs(model: torch.nn.Module, data, forget: torch.Tensor) -> torch.Tensor:
    """(B, ...) inputs of one or two examples of D_f, as `data` gives them in training.

    Raises: TypeError or ValueError, before anything is computed, for a model or data that cannot be used.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give the trained torch.nn.Module")
    if not callable(getattr(data, "batches", None)):
        raise TypeError(f"data is a {type(data).__name__} without batches(); wrap it as engine/batches.py says")
    given = next(iter(data.batches(forget[:2], size=2, generator=torch.Generator())), None)
    if not isinstance(given, (tuple, list)) or len(given) != 3 or not all(isinstance(t, torch.Tensor) for t in given):
        raise TypeError(f"data.batches yields {described(given)}; it must yield tensors (index, x, y)")
    index, x, y = given
    check_batch(index, x, y)
    return x


def described(given) -> str:
    """What something is, for a message."""
    if isinstance(given, (tuple, list)):
        return f"({', '.join(type(part).__name__ for part in given)})"
    return "nothing" if given is None else f"a {type(given).__name__}"


def check_batch(index: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise ValueError unless labels are classes, one for each input; what is on another device is not looked into."""
    if y.dtype != torch.int64 or y.shape != (len(x),) or len(index) != len(x):
        raise ValueError(f"data.batches yields labels of {y.dtype} and shape {tuple(y.shape)} for {len(x)} inputs and "
                         f"{len(index)} indices; they must be int64 of shape ({len(x)},), classes from 0")
    if y.device.type == "cpu" and len(y) and int(y.min()) < 0:
        raise ValueError(f"data.batches yields the label {int(y.min())}; labels are classes from 0")


def batches_of(s, index: torch.Tensor | None, augment: bool = True, size: int | None = None):
    """One pass over the examples of `index`, or over D_tr, for Algorithm 1's state.

    Shuffled and augmented by the state's generator, or plain and in order; in the network's dtype, on its device; the
    last batch is never one example alone.
    Yields: (index, x, y): (B,) int64 on the CPU, (B, ...) inputs, (B,) int64 labels.
    Raises: ValueError: data.batches yields other examples than those asked for.
    """
    asked = torch.arange(len(s.data), device="cpu") if index is None else index
    dtype = next(s.expanded.parameters()).dtype
    generator = s.generator if augment else None
    given = s.data.batches(index, size=size or s.config.batch, generator=generator, augment=augment, dtype=dtype)
    seen = [torch.empty(0, dtype=torch.int64)]
    for i, x, y in without_lone_last(given, len(asked)):
        check_batch(i, x, y)
        seen.append(i.clone())
        yield i, x.to(s.device), y.to(s.device)
    seen = torch.cat(seen)
    right = torch.equal(seen.sort().values, asked.sort().values) and (augment or torch.equal(seen, asked))
    if not right:
        raise ValueError("data.batches must yield the indices that are asked for, each once, in order unless shuffled")


def without_lone_last(batches, n: int):
    """The batches of a pass over n examples, a last one of a single example joined to the one before it.

    BatchNorm may refuse one example alone.
    """
    held, left = None, n
    for batch in batches:
        left -= len(batch[0])
        if held is None and left == 1 < len(batch[0]):
            held = [part.clone() for part in batch]
            continue
        yield batch if held is None else tuple(torch.cat(parts) for parts in zip(held, batch, strict=True))


def per_example(batches, values_of, n: int) -> torch.Tensor:
    """What a pass gives of each example, in a table by dataset index.

    Args: batches: of (index, x, y); values_of: values_of(index, x, y) -> (B, ...) of a batch; n: rows of the table.
    Returns: (n, ...) in dtype and on device of the values; 0 for an example that the pass has not met.
    """
    table = None
    for index, x, y in batches:
        values = values_of(index, x, y)
        table = values.new_zeros((n, *values.shape[1:])) if table is None else table
        table[index.to(values.device)] = values
    return table
