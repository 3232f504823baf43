#!/usr/bin/env bash
# Puts nvidia-cuda-mps-control on PATH on a Debian machine, for the tests marked `mps_binary`; needs root, no GPU.
# The package lies in the component non-free of the mirrors that the machine already uses. Does nothing if the binary is there.
set -euo pipefail

if command -v nvidia-cuda-mps-control >/dev/null; then
    echo "already there: $(command -v nvidia-cuda-mps-control)"
    exit 0
fi

known=/etc/apt/sources.list.d/debian.sources
added=/etc/apt/sources.list.d/debian-non-free.sources
[ -r "$known" ] || { echo "$known is missing: add the component non-free by hand, then install nvidia-cuda-mps" >&2; exit 1; }

sed -E 's/^Components:.*/Components: non-free/' "$known" >"$added"
apt-get update -qq
if DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends -qq nvidia-cuda-mps >/dev/null; then
    command -v nvidia-cuda-mps-control
    exit 0
fi

# The package depends on the driver's kernel side, which a machine without a GPU cannot always take: the two programs suffice.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder" && apt-get download -qq nvidia-cuda-mps && dpkg -x ./*.deb unpacked)
install -m 755 "$folder"/unpacked/usr/bin/nvidia-cuda-mps-* /usr/local/bin/
command -v nvidia-cuda-mps-control
