"""Sources of recordings: the simulated machine, a file, or a device that gives samples. Put your own sensor's reading here.

A recording is int16 [windows, 2048, 3]: consecutive windows of samples at 3200 Hz, in counts of 3.9 mg.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Condition, Thread
from time import time
from typing import Any, BinaryIO

import numpy as np
from machine import LSB, WEEK_H, WINDOW, WINDOWS, Fault, Machine

Array = np.ndarray[Any, np.dtype[Any]]
SAMPLES = WINDOW * WINDOWS
AXES = 3


def recordings(source: str) -> Iterator[Array]:
    """Return the recordings of a source, one after the other; each is int16 [windows, 2048, 3].

    Args:
        source: `machine`: the simulated one, without end, whose outer race breaks within ten minutes. A file that ends in .npy,
            [samples, 3], whole numbers being counts and others g; or in .csv, three columns of g, with or without a line of
            names. Anything else is a device or a pipe that gives samples as three little-endian int16, such as /dev/iio:device0:
            of it the newest recording is given, and those in between are left out.

    Raises:
        SystemExit: the source cannot be read, or has too few samples; or a device or pipe ended, which a file may.
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
        return _of_device(path, path.open("rb"), begun=stat.S_ISCHR(mode))
    except (OSError, ValueError) as e:
        raise SystemExit(f"{path} cannot be read: {e}") from None


def _simulated() -> Iterator[Array]:
    """Yield recordings of the simulated machine now, without end, whose outer race breaks within ten minutes."""
    now_h = time() / 3600 % WEEK_H
    machine = Machine(faults=[Fault("outer race", now_h, now_h + 1 / 6)])
    while True:
        yield machine.record(time() / 3600 % WEEK_H)


def _of_file(path: Path) -> Array:
    """Return the samples of a file, int16 [samples, 3], cut to the range of int16.

    Raises:
        SystemExit: it is no such file, has another shape, too few samples, or values that are no numbers.
    """
    read, wanted = (_of_npy, "an array by numpy.save") if path.suffix == ".npy" else (_of_csv, "numbers with commas in between")
    try:
        found = read(path)
    except ValueError as e:
        raise SystemExit(f"{path} cannot be read: it should be {wanted} ({e})") from None
    if found.dtype.kind not in "iuf":
        raise SystemExit(f"{path} has values of type {found.dtype}: samples are whole numbers, which are counts, or floats in g")
    if found.ndim != len((SAMPLES, AXES)) or found.shape[1] != AXES or len(found) < SAMPLES:
        raise SystemExit(
            f"{path} has the shape {list(found.shape)}: a recording takes [{SAMPLES} or more, {AXES}], samples and axes"
        )
    if found.dtype.kind == "f":
        if not np.isfinite(found).all():
            raise SystemExit(f"{path} has values that are no numbers: leave these samples out")
        found = np.rint(found / LSB)
    return np.clip(found, -32768, 32767).astype(np.int16)


def _of_npy(path: Path) -> Array:
    with path.open("rb") as file:  # np.load would take other formats, too
        return np.lib.format.read_array(file, allow_pickle=False)


def _of_csv(path: Path) -> Array:
    """Return the numbers of a csv file, without a first line of names."""
    with path.open(encoding="utf-8-sig") as file:
        named = not _is_number(file.readline().partition(",")[0])
        file.seek(0)
        return np.loadtxt(file, delimiter=",", skiprows=int(named), ndmin=2)


def _cut(samples: Array) -> Iterator[Array]:
    for start in range(0, len(samples) - SAMPLES + 1, SAMPLES):
        yield samples[start : start + SAMPLES].reshape(WINDOWS, WINDOW, AXES)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _of_device(path: Path, device: BinaryIO, *, begun: bool) -> Iterator[Array]:
    """Yield the newest recording of a device whenever one is asked for, and wait for it.

    begun: it has gathered samples since some time ago, which are not of now: its first recording is left out.

    Raises:
        SystemExit: the device ended.
    """
    newest = Newest(device, skipped=int(begun))
    while (data := newest.take()) is not None:
        yield np.frombuffer(data, "<i2").reshape(WINDOWS, WINDOW, AXES)
    raise SystemExit(f"{path} ended{newest.why}: it gives no more samples")


class Newest:
    """Reads a device all the time, in a thread, so that neither it nor a pipe has to keep samples until they are old.

    Args:
        device: what is read.
        skipped: so many recordings are thrown away at first.

    Attributes:
        why: the error by which the device ended, if it was one.
    """

    def __init__(self, device: BinaryIO, *, skipped: int = 0) -> None:
        self.why = ""
        self._device, self._skipped = device, skipped
        self._changed = Condition()
        self._whole: bytes | None = None
        self._ended = False
        Thread(target=self._read, name="sensor", daemon=True).start()  # it may be in a read that has no end

    def take(self) -> bytes | None:
        """Wait for a recording that was not taken yet, and return the newest, as bytes; None: the device ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._whole is not None or self._ended)
            data, self._whole = self._whole, None
            return data

    def _read(self) -> None:
        """Read recordings until the device ends or fails, and keep the newest; runs in the thread."""
        size = 2 * AXES * SAMPLES
        try:
            with self._device as device:
                while len(data := device.read(size)) == size:
                    with self._changed:
                        if self._skipped > 0:
                            self._skipped -= 1
                            continue
                        self._whole = data
                        self._changed.notify()
        except OSError as e:  # it was unplugged
            self.why = f" ({e})"
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()
