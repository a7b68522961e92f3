#!/usr/bin/python3
"""Every C++ file is as clang-format (Debian 12's 14) leaves it."""
import pathlib
import subprocess
import sys

top = pathlib.Path(__file__).resolve().parent.parent
files = sorted(str(path) for folder in ("daemon", "pkg", "tests", "bench")
               for path in (top / folder).rglob("*")
               if path.suffix in (".cc", ".h"))
if not files:
    sys.exit("no files found")
sys.exit(subprocess.run(
    ["clang-format-14", "--dry-run", "--Werror"] + files).returncode)
