#!/usr/bin/env bash
# Installs what is missing, builds the release, runs every benchmark and prints
# the table of README.md.
#
#   bench/run.sh [--only CASE[,CASE]] [--pairs N] [--dir DIR] [--update-readme]
#
# Cases: download, reflink, start, memory, idle; limited, sync, sparse, resume,
# delta, syncmemory; datasource, push, takeover; handover. DIR (default: a new folder in
# /var/tmp) needs 30 GiB; reflink needs root, to mount a scratch XFS. With
# BIM_INCUMBENT=PATH, the binary of Longhorn's own manager, datasource shows its
# time beside ours, too (as root: it sees its disk as /data).
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/lib.sh
case " $* " in *" -h "*|*" --help "*) sed -n '2,11s/^# \{0,1\}//p' bench/run.sh; exit 0 ;; esac
mkdir -p build
install_packages build run test
build release
exec /usr/bin/python3 bench/bench.py --binary "$PWD/build/release/bim" "$@"
