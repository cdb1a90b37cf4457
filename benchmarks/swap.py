"""A model swap under load: latency of calls with and without swaps, and whether a request is lost.

    python benchmarks/swap.py [--seconds 10] [--callers 2] [--every 0.5] [--model models/fashion/edge.int8.onnx]

Callers ask a router for answers, at a fixed interval each, while another thread activates one of two versions in turn, and reloads:
the new one is verified, loaded, warmed up and tried on canary inputs beside the one in use. Rounds with and without swaps take turns.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter, sleep

import numpy as np
from figures import MODELS, size

from edgeroute import Router
from edgeroute.catalog import Catalog
from edgeroute.tools.catalog_keys_and_publishing import keygen, publish

PAUSE_S = 0.002


def prepared(home: Path, model: Path, images: np.ndarray) -> Catalog:
    """Make a device with two versions of the model, the first one active, with keys, catalog and canary inputs in `home`."""
    keygen(home / "keys")
    with Router(model) as router:
        answers = [router.infer(x).value for x in images[:8]]
    np.savez(home / "canaries.npz", inputs=images[:8], answers=answers)
    catalog = Catalog(home / "store", home / "catalog", root=home / "catalog" / "root.json")
    for version in ("1", "2"):
        publish(home / "catalog", "model", version, [model], keys=home / "keys", canaries=home / "canaries.npz")
        catalog.pull("model", version)
    catalog.activate("model", "1")
    return catalog


def asked(router: Router, images: np.ndarray, seconds: float, callers: int) -> tuple[np.ndarray, int]:
    """Ask a router from `callers` threads for so many seconds; return all latencies, in seconds, and how many calls had no answer.

    Degraded answers and exceptions count as none; the latter are printed to stderr.
    """
    took: list[list[float]] = [[] for _ in range(callers)]
    lost = [0] * callers
    until = monotonic() + seconds

    def ask(n: int) -> None:
        i = n
        while monotonic() < until:
            begun = perf_counter()
            try:
                answer = router.infer(images[i % len(images)])
                lost[n] += answer.value is None or answer.degraded
            except Exception as e:  # noqa: BLE001 - counted
                print(e, file=sys.stderr)
                lost[n] += 1
            took[n].append(perf_counter() - begun)
            i += callers
            sleep(PAUSE_S)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.concatenate(took), sum(lost)


def main() -> None:
    """Run rounds with and without swaps in turns, and print one line for each kind, and what swaps add to p99."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=size(10, 1))
    parser.add_argument("--rounds", type=int, default=size(3, 1))
    parser.add_argument("--callers", type=int, default=2)
    parser.add_argument("--every", type=float, default=0.5)
    parser.add_argument("--model", type=Path, default=MODELS / "edge.int8.onnx")
    options = parser.parse_args()
    images = np.load(MODELS / "sample.npz")["images"]
    with TemporaryDirectory() as folder:
        home = Path(folder)
        for file in options.model.parent.glob(f"{options.model.stem}.*"):
            shutil.copy(file, home / file.name)
        catalog = prepared(home, home / options.model.name, images)
        with Router(catalog.path("model")) as router:
            router.warm()
            found: dict[bool, list[np.ndarray]] = {False: [], True: []}
            lost, swaps = {False: 0, True: 0}, 0
            before = router.stats().requests
            for turn in range(2 * options.rounds):
                swapping, stop = bool(turn % 2), threading.Event()

                def swap(stop: threading.Event = stop) -> None:
                    nonlocal swaps
                    while not stop.wait(options.every):
                        swaps += 1
                        catalog.activate("model", str(1 + swaps % 2))
                        router.reload()

                thread = threading.Thread(target=swap)
                if swapping:
                    thread.start()
                took, gone = asked(router, images, options.seconds, options.callers)
                if swapping:
                    stop.set()
                    thread.join()
                found[swapping].append(took)
                lost[swapping] += gone
            counted = router.stats().requests - before
    calls = sum(len(took) for rounds in found.values() for took in rounds)
    p99 = {}
    print("| rounds | calls | lost | p50 | p99, median of the rounds | longest |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for swapping, rounds in found.items():
        ms = 1000 * np.concatenate(rounds)
        p99[swapping] = np.median([1000 * np.quantile(took, 0.99) for took in rounds])
        name = f"{swaps} swaps" if swapping else "no swaps"
        times = f"{np.quantile(ms, 0.5):.2f} ms | {p99[swapping]:.2f} ms | {ms.max():.1f} ms"
        print(f"| {len(rounds)} with {name} | {len(ms):,} | {lost[swapping]} | {times} |")
    print(f"\nswaps add {p99[True] - p99[False]:.2f} ms to p99; {counted:,} of {calls:,} requests were counted")


if __name__ == "__main__":
    main()
