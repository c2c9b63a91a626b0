"""Draw data/fashion-mini.npz, the small built-in data set, from the full Fashion-MNIST (Sec. 4: data sets).

    apt-get install dataset-fashion-mnist
    python data/make_fashion_mini.py
    python data/make_fashion_mini.py --source DIR --out FILE      # the same four .gz files from elsewhere
"""

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts the files
OUT = Path(__file__).resolve().parent / "fashion-mini.npz"
SEED = 0
CLASSES = 10
PER_CLASS = {"train": 600, "test": 200}
PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path):
    """Return the uint8 array held by a gzipped IDX file: (N, H, W) images or (N,) labels."""
    with gzip.open(path, "rb") as file:
        content = file.read()
    zero, kind, ndim = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind != 8:  # 8: unsigned bytes
        raise ValueError(f"{path} does not start like an IDX file of unsigned bytes; get it afresh")
    shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def stratified(labels, per_class, rng):
    """Return (CLASSES * per_class,) int32 indices, equally many of each class, in random order."""
    picks = [rng.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in range(CLASSES)]
    return rng.permutation(np.concatenate(picks)).astype(np.int32)


def draw(source=SOURCE, seed=SEED):
    """Return the arrays of the subset: x_*, y_* uint8 and index_* int32 (rows of the full train or test set)."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, prefix in PREFIX.items():
        images = read_idx(Path(source) / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(Path(source) / f"{prefix}-labels-idx1-ubyte.gz")
        index = stratified(labels, PER_CLASS[split], rng)
        arrays |= {f"x_{split}": images[index], f"y_{split}": labels[index], f"index_{split}": index}
    return arrays


def main():
    parser = argparse.ArgumentParser(description="Draw data/fashion-mini.npz from the full Fashion-MNIST.")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the four .gz files (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write (data/fashion-mini.npz)")
    args = parser.parse_args()
    if not args.source.is_dir():
        parser.error(f"no folder {args.source}: apt-get install dataset-fashion-mnist, or give --source")
    arrays = draw(args.source)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **arrays)
    pixels = arrays["x_train"] / 255
    print(f"{args.out}: {args.out.stat().st_size} bytes, mean {pixels.mean():.4f}, std {pixels.std():.4f}")


if __name__ == "__main__":
    main()
