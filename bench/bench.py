#!/usr/bin/python3
"""Benchmarks against what a user would use instead, in the same run.

Every ratio is the median over interleaved pairs (first one side, then the
other, on the same files and disk). See bench/run.sh for the command.
"""
import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import handover
import longhorn
import transfers
from common import (GIB, MIB, TOP, Daemon, Nginx, PeakMemory, make_disk,
                    median_ratio, quietly, random_file, row, seconds, settle,
                    sparse_file)


def bench_download(args, work):
    www = work / "www"
    www.mkdir()
    random_file(www / "big.raw", 2 * GIB)
    nginx = Nginx(work / "nginx", www)
    disk = make_disk(work / "disk", "bench")
    daemon = Daemon(args.binary, work / "daemon", [disk])
    url = nginx.url("big.raw")
    ours, theirs = [], []
    try:
        for i in range(args.pairs + 1):  # the first pair warms the caches
            target = work / "curl.out"
            settle()
            begin = time.monotonic()
            quietly("curl", "-s", "-o", str(target), url)
            quietly("sync", str(target))
            theirs.append(time.monotonic() - begin)
            target.unlink()
            settle()
            begin = time.monotonic()
            daemon.ensure(f"big{i}", url)
            daemon.wait([f"big{i}"])
            ours.append(time.monotonic() - begin)
            daemon.remove(f"big{i}")
    finally:
        daemon.stop()
        nginx.stop()
    ours, theirs = ours[1:], theirs[1:]
    ratio = median_ratio(ours, theirs)
    return [row("download of 2 GiB random raw from nginx until ready, "
                "SHA-512 and fsync included",
                seconds(ours), f"`curl -o` + `sync`: {seconds(theirs)}",
                f"{ratio:.2f} x", "at most 1.15 x", ratio <= 1.15)]


def bench_reflink(args, work):
    image = work / "xfs.img"
    with open(image, "wb") as out:
        out.truncate(12 * GIB)
    quietly("mkfs.xfs", "-q", "-m", "reflink=1", str(image))
    mount = work / "xfs"
    mount.mkdir()
    quietly("mount", "-o", "loop", str(image), str(mount))
    try:
        www = work / "www"
        www.mkdir()
        random_file(www / "big.raw", 2 * GIB)
        nginx = Nginx(work / "nginx", www)
        first = make_disk(mount / "first", "first")
        daemon = Daemon(args.binary, work / "daemon", [first])
        try:
            daemon.ensure("big", nginx.url("big.raw"))
            daemon.wait(["big"])
            source = next(first.glob("backing-images/big-*/backing"))
            ours, theirs = [], []
            for i in range(args.pairs + 1):
                target = mount / "cp.out"
                settle()
                begin = time.monotonic()
                quietly("cp", "--reflink=never", str(source), str(target))
                quietly("sync", str(target))
                theirs.append(time.monotonic() - begin)
                target.unlink()
                other = make_disk(mount / f"other{i}", f"other{i}")
                settle()
                begin = time.monotonic()
                daemon.call("DiskService", "Add", path=str(other))
                daemon.wait(["big"])
                ours.append(time.monotonic() - begin)
                copy = next(other.glob("backing-images/big-*/backing"))
                assert copy.stat().st_size == 2 * GIB
        finally:
            daemon.stop()
            nginx.stop()
    finally:
        quietly("umount", str(mount))
    ours, theirs = ours[1:], theirs[1:]
    ratio = median_ratio(ours, theirs)
    return [row("copy of a 2 GiB image to another disk directory of one XFS",
                f"{statistics.median(ours) * 1000:.0f} ms",
                f"`cp --reflink=never` + `sync`: {seconds(theirs)}",
                f"{ratio * 100:.1f} %", "under 5 %", ratio < 0.05)]


def bench_start(args, work):
    source = work / "source"
    source.mkdir()
    count, size = 1000, 256 * 1024
    disk = make_disk(work / "disk", "bench")
    daemon = Daemon(args.binary, work / "daemon", [disk],
                    f'[sources]\nallow_file = true\nfile_roots = ["{source}"]')
    random_file(source / "small.raw", size)
    names = [f"image{i:04}" for i in range(count)]
    for name in names:
        daemon.ensure(name, f"file://{source}/small.raw")
    daemon.wait(names)
    daemon.stop()
    times, read = [], []
    for _ in range(args.pairs):
        settle()
        begin = time.monotonic()
        daemon.start()
        while True:
            page = daemon.call("ImageService", "List", page_size=1000)
            ready = sum(1 for i in page.images if i.state == "ready")
            if ready == count:
                break
            if time.monotonic() - begin > 60:
                raise SystemExit(f"only {ready} images ready after 60 s")
        times.append(time.monotonic() - begin)
        io = dict(line.split(": ") for line in
                  open(f"/proc/{daemon.process.pid}/io").read().splitlines())
        read.append(int(io["rchar"]))
        origins = {c.origin for i in page.images for c in i.copies}
        assert not any("rehashed" in o for o in origins), origins
        daemon.stop()
    # Records and wishes are read; image data would be 250 MiB.
    rehashed = max(read) > count * size // 4
    return [row("start with 1,000 ready images on disk until all are listed "
                "ready",
                f"{statistics.median(times) * 1000:.0f} ms",
                f"{max(read) / MIB:.1f} MiB of records read, "
                f"{'image data read' if rehashed else '0 bytes rehashed'}",
                seconds(times), "within 1 s of exec, 0 bytes rehashed",
                statistics.median(times) <= 1.0 and not rehashed)]


def bench_memory(args, work):
    www = work / "www"
    www.mkdir()
    random_file(www / "one.raw", GIB)
    sparse_file(www / "sparse.raw", 16 * GIB, 64 * MIB)
    nginx = Nginx(work / "nginx", www)
    disk = make_disk(work / "disk", "bench")
    daemon = Daemon(args.binary, work / "daemon", [disk])
    rows = []
    try:
        time.sleep(2)
        idle = daemon.rss_anon()
        rows.append(row("memory, idle (RssAnon)", f"{idle / MIB:.1f} MiB", "",
                        f"{idle / MIB:.1f} MiB", "at most 12 MiB",
                        idle <= 12 * MIB))
        for name, label in (("one", "1 GiB"), ("sparse", "16 GiB sparse")):
            names = [f"{name}{i}" for i in range(8)]
            with PeakMemory(daemon) as memory:
                for image in names:
                    daemon.ensure(image, nginx.url(f"{name}.raw"))
                daemon.wait(names)
            for image in names:
                daemon.remove(image)
            rows.append(row(f"memory, 8 transfers of {label} at once "
                            "(RssAnon, peak)",
                            f"{memory.peak / MIB:.0f} MiB", "",
                            f"{memory.peak / MIB:.0f} MiB", "at most 128 MiB",
                            memory.peak <= 128 * MIB))
    finally:
        daemon.stop()
        nginx.stop()
    return rows


def activity(pid):
    """(nanoseconds on a CPU, context switches) of all threads."""
    busy = switches = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        busy += int((task / "schedstat").read_text().split()[0])
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                switches += int(line.split()[1])
    return busy, switches


def bench_idle(args, work):
    source = work / "source"
    source.mkdir()
    random_file(source / "small.raw", 256 * 1024)
    disk = make_disk(work / "disk", "bench")
    daemon = Daemon(args.binary, work / "daemon", [disk],
                    f'[sources]\nallow_file = true\nfile_roots = ["{source}"]')
    try:
        names = [f"image{i:03}" for i in range(100)]
        for name in names:
            daemon.ensure(name, f"file://{source}/small.raw")
        daemon.wait(names)
        time.sleep(15)  # worker threads leave after 10 s
        before = activity(daemon.process.pid)
        seconds = 30
        time.sleep(seconds)
        after = activity(daemon.process.pid)
    finally:
        daemon.stop()
    share = (after[0] - before[0]) / 1e9 / seconds
    switches = (after[1] - before[1]) / seconds
    return [row("idle, 100 images", f"{switches:.1f} context switches a second",
                "", f"{share * 100:.3f} % of a core", "under 0.1 %",
                share < 0.001)]


CASES = {"download": bench_download, "reflink": bench_reflink,
         "start": bench_start, "memory": bench_memory, "idle": bench_idle,
         **transfers.CASES, **longhorn.CASES, **handover.CASES}


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo")
                if line.startswith("model name")), "unknown")
    memory = next(int(line.split()[1]) for line in open("/proc/meminfo")
                  if line.startswith("MemTotal")) / MIB
    return (f"{os.cpu_count()} cores ({cpu}), {memory:.0f} GiB of memory, "
            f"Linux {os.uname().release.split('-')[0]}")


def table(rows, filesystem):
    lines = [f"Measured on {machine()}, {filesystem}.", "",
             "| case | bim | the alternative | result | bar | holds |",
             "|---|---|---|---|---|---|"]
    for r in rows:
        lines.append("| {case} | {ours} | {theirs} | {value} | {bar} | {} |"
                     .format("yes" if r["holds"] else "**no**", **r))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dir", default="/var/tmp")
    parser.add_argument("--update-readme", action="store_true")
    args = parser.parse_args()
    chosen = args.only.split(",")
    if unknown := [c for c in chosen if c not in CASES]:
        parser.error(f"unknown case {unknown[0]}: expected {', '.join(CASES)}")
    filesystem = subprocess.run(
        ["stat", "-f", "-c", "%T", args.dir], check=True, text=True,
        capture_output=True).stdout.strip().replace("ext2/ext3", "ext4")
    rows = []
    for name in chosen:
        work = pathlib.Path(tempfile.mkdtemp(prefix="bim-bench-", dir=args.dir))
        try:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found = CASES[name](args, work)
            for r in found:
                print(f"  {r['case']}: {r['value']} ({r['bar']})",
                      file=sys.stderr, flush=True)
            rows += found
        finally:
            shutil.rmtree(work, ignore_errors=True)
    text = table(rows, filesystem)
    print(text)
    if args.update_readme:
        readme = TOP / "README.md"
        old = readme.read_text()
        begin, end = "<!-- bench -->\n", "<!-- /bench -->"
        head, rest = old.split(begin)
        readme.write_text(head + begin + text + "\n" + end + rest.split(end)[1])
    return 0 if all(r["holds"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
