"""Where recordings come from: the simulated machine, a file, or a device that gives samples. Put your own sensor's reading here.

A recording is int16 [windows, 2048, 3]: consecutive windows of samples at 3200 Hz, in counts of 3.9 mg.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any, BinaryIO

import numpy as np
from machine import LSB, WEEK_H, WINDOW, WINDOWS, Fault, Machine

Array = np.ndarray[Any, np.dtype[Any]]
SAMPLES = WINDOW * WINDOWS
AXES = 3


def recordings(source: str) -> Iterator[Array]:
    """Recordings from a source, one after the other.

    Args:
        source: `machine`: the simulated one, without end, whose outer race breaks within ten minutes. A file that ends in .npy,
            [samples, 3], whole numbers being counts and others g; or in .csv, three columns of g, with or without a line of
            names. Anything else is a device or a pipe that gives samples as three little-endian int16, such as /dev/iio:device0.

    Raises:
        SystemExit: the source cannot be read, or has too few samples.
    """
    if source == "machine":
        return _simulated()
    path = Path(source)
    try:
        if path.suffix in {".npy", ".csv"}:
            return _cut(_of_file(path))
        mode = path.stat().st_mode
        if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
            raise SystemExit(f"{path} is no .npy or .csv file, no device and no pipe: give one of these, or `machine`")
        return _of_device(path.open("rb"))
    except (OSError, ValueError) as e:
        raise SystemExit(f"{path} cannot be read: {e}") from None


def _simulated() -> Iterator[Array]:
    now_h = time() / 3600 % WEEK_H
    machine = Machine(faults=[Fault("outer race", now_h, now_h + 1 / 6)])
    while True:
        yield machine.record(time() / 3600 % WEEK_H)


def _of_file(path: Path) -> Array:
    """Its samples, int16 [samples, 3]."""
    if path.suffix == ".npy":
        found = np.load(path, allow_pickle=False)
    else:
        with path.open() as file:
            named = not file.readline().replace(",", "").strip()[:1].lstrip("-").isdigit()
        found = np.loadtxt(path, delimiter=",", skiprows=int(named), ndmin=2)
    if found.ndim != len((SAMPLES, AXES)) or found.shape[1] != AXES or len(found) < SAMPLES:
        raise SystemExit(
            f"{path} has the shape {list(found.shape)}: a recording takes [{SAMPLES} or more, {AXES}], samples and axes"
        )
    if found.dtype.kind == "f":
        if not np.isfinite(found).all():
            raise SystemExit(f"{path} has values that are no numbers: leave these samples out")
        found = np.rint(found / LSB)
    return np.clip(found, -32768, 32767).astype(np.int16)


def _cut(samples: Array) -> Iterator[Array]:
    for start in range(0, len(samples) - SAMPLES + 1, SAMPLES):
        yield samples[start : start + SAMPLES].reshape(WINDOWS, WINDOW, AXES)


def _of_device(device: BinaryIO) -> Iterator[Array]:
    size = 2 * AXES * SAMPLES
    with device:
        while len(data := device.read(size)) == size:
            yield np.frombuffer(data, "<i2").reshape(WINDOWS, WINDOW, AXES)
