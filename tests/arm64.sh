#!/usr/bin/env bash
# The core suite, ONNX Runtime and LiteRT on Debian arm64, by user-mode emulation. What is downloaded stays in .arm64.
# It needs no root and no chroot: QEMU looks for the system's files below .arm64/root, and pip picks wheels of arm64.
# ARM64_CPU: the core that is emulated, a Raspberry Pi 3's unless said: cortex-a53, cortex-a72 (Pi 4), cortex-a76 (Pi 5).
set -euo pipefail
cd "$(dirname "$0")/.."
home=$PWD/.arm64 root=$PWD/.arm64/root

qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64) || { echo "there is no QEMU: apt-get install qemu-user-static"; exit 1; }
command -v apt-get >/dev/null || { echo "Debian's packages are fetched by apt-get, and there is none"; exit 1; }

if [ ! -e "$home/root.done" ]; then
    rm -rf "$home" && mkdir -p "$home"/{state/lists/partial,cache/archives/partial} "$root"/usr/{bin,lib,sbin}
    touch "$home/state/status"
    apt=(apt-get -qq -y -o Dir::State="$home/state" -o Dir::State::status="$home/state/status" -o Dir::Cache="$home/cache"
        -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Install-Recommends=false -o APT::Sandbox::User="$(id -un)"
        -o Debug::NoLocking=1)
    "${apt[@]}" update
    "${apt[@]}" install --download-only python3 libstdc++6 >/dev/null
    for folder in bin lib sbin; do ln -s "usr/$folder" "$root/$folder"; done
    for package in "$home"/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --keep-directory-symlink --no-same-owner
    done
    touch "$home/root.done"
fi

# sys.executable of the emulated Python, which starts others by it
cat >"$home/python" <<END
#!/bin/sh
exec $qemu -cpu "\${ARM64_CPU:-cortex-a53}" -L "$root" -0 "\$0" "$root/usr/bin/python3" "\$@"
END
chmod +x "$home/python"
export PYTHONHOME=/usr PYTHONDONTWRITEBYTECODE=1
version=$("$home/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

if [ ! -e "$home/site.done" ] || [ pyproject.toml -nt "$home/site.done" ]; then
    tags=() && for tag in 2014 _2_17 _2_27 _2_28 _2_34 _2_39; do tags+=(--platform "manylinux${tag}_aarch64"); done
    rm -rf "$home/site"
    env -u PYTHONHOME "${PYTHON:-python3}" -m pip install --quiet --target "$home/site" --only-binary=:all: "${tags[@]}" \
        --python-version "$version" --implementation cp --abi "cp${version/./}" --abi abi3 --abi none \
        numpy onnxruntime ai-edge-litert httptools certifi tenacity pydantic-settings \
        onnx psutil pytest pytest-timeout pytest-xdist hypothesis typer rich tomlkit
    touch "$home/site.done"
fi

export PYTHONPATH="$home/site:$PWD"
"$home/python" -c 'import platform, sys; print("Python", sys.version.split()[0], "on", platform.machine())'
tests=("$@") && [ $# -gt 0 ] || tests=(tests/core tests/test_onnx.py tests/test_litert.py)
# left out: a library that is compiled for this machine, and a process that does not get PYTHONHOME
export TEST_SHARE=${TEST_SHARE:-0.05}
exec "$home/python" -m pytest -q -n 2 --dist worksteal -p no:cacheprovider --timeout 1200 -k "not a_library_that and not telemetry_is_off" \
    "${tests[@]}"
