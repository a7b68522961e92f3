#!/usr/bin/env python3
"""A room of pkg/ uses only rooms below it, and third-party headers stay in theirs.

Reads every #include of pkg/ and daemon/. `--self-test` is part of each run: a
small planted tree must give exactly the violations planted in it.
"""

import pathlib
import re
import sys
import tempfile

LAYERS = {
    "base": 0, "meta": 0,
    "io": 1, "hash": 1, "compress": 1, "http": 1, "exec": 1,
    "store": 2, "image": 2,
    "transfer": 3,
    "manager": 4, "handover": 4,
    "api": 5, "longhorn": 5,
    "daemon": 6,
}
# Neighbours of one layer that may be used all the same.
SIDEWAYS = {"http": {"exec", "io"}, "store": {"image"}, "longhorn": {"api"}}

# The first pattern that a header matches tells who may include it.
THIRD_PARTY = [
    (r"curl/", {"http"}),
    (r"boost/beast", {"http"}),
    (r"openssl/", {"hash"}),
    (r"(zlib|lzma|zstd)\.h", {"compress"}),
    (r"boost/asio/steady_timer\.hpp$", {"exec", "http", "manager", "api"}),
    (r"boost/asio/posix/stream_descriptor\.hpp$", {"exec", "http", "api", "daemon"}),
    (r"boost/asio", {"exec", "http", "api"}),
    (r"(grpc|grpcpp|google/protobuf)/|.*\.pb\.h$", {"api", "longhorn", "daemon"}),
    (r"CLI/|toml\+\+/", {"daemon"}),
    (r"nlohmann/", {"store", "handover", "manager", "longhorn", "daemon"}),
]

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')


def problem(room, header):
    """What is wrong with `room` including `header`; None when nothing is."""
    own = re.match(r"pkg/([^/]+)/", header) or re.match(r"(daemon)/", header)
    if own:
        other = own.group(1)
        if other not in LAYERS:
            return f"{other} is not in the table of layers"
        if other == room or LAYERS[other] < LAYERS[room]:
            return None
        if other in SIDEWAYS.get(room, ()):
            return None
        return f"{room} (layer {LAYERS[room]}) may not use {other} (layer {LAYERS[other]})"
    for pattern, rooms in THIRD_PARTY:
        if re.match(pattern, header):
            if room in rooms:
                return None
            return f"belongs to {', '.join(sorted(rooms))} only"
    return None


def violations(root):
    """All of them, as "path:line: header: why"; and how many files were read."""
    found, files = [], 0
    for top in ("pkg", "daemon"):
        for path in sorted((root / top).rglob("*")):
            if path.suffix not in (".h", ".cc"):
                continue
            files += 1
            parts = path.relative_to(root).parts
            room = "daemon" if top == "daemon" else parts[1]
            shown = "/".join(parts)
            if room not in LAYERS:
                found.append(f"{shown}:1: {room}: not in the table of layers")
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                why = match and problem(room, match.group(1))
                if why:
                    found.append(f"{shown}:{number}: {match.group(1)}: {why}")
    return found, files


def self_test():
    planted = {
        "pkg/base/a.h": '#include <string>\n#include "pkg/io/b.h"\n',
        "pkg/io/b.h": '#include "pkg/base/a.h"\n#include "pkg/hash/c.h"\n',
        "pkg/hash/c.h": "#include <openssl/evp.h>\n#include <curl/curl.h>\n",
        "pkg/http/d.cc": '#include "pkg/exec/e.h"\n#include "pkg/io/b.h"\n'
                         '#include <boost/beast/http.hpp>\n#include "pkg/hash/c.h"\n',
        "pkg/store/f.cc": '#include "pkg/image/g.h"\n  #  include <nlohmann/json.hpp>\n'
                          '#include "pkg/transfer/h.h"\n// #include "pkg/api/x.h"\n',
        "pkg/image/g.h": '#include "pkg/store/f.h"\n',
        "pkg/manager/m.cc": "#include <boost/asio/steady_timer.hpp>\n#include <boost/asio/post.hpp>\n",
        "pkg/api/n.cc": "#include <grpcpp/grpcpp.h>\n#include <CLI/CLI.hpp>\n",
        "pkg/odd/o.h": "",
        "daemon/main.cc": '#include "pkg/api/n.h"\n#include <toml++/toml.h>\n'
                          '#include <openssl/evp.h>\n#include "pkg/nowhere/x.h"\n',
    }
    expected = {
        "pkg/base/a.h:2", "pkg/io/b.h:2", "pkg/hash/c.h:2", "pkg/http/d.cc:4",
        "pkg/store/f.cc:3", "pkg/image/g.h:1", "pkg/manager/m.cc:2",
        "pkg/api/n.cc:2", "pkg/odd/o.h:1", "daemon/main.cc:3", "daemon/main.cc:4",
    }
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in planted.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        found, files = violations(root)
    places = {":".join(line.split(":")[:2]) for line in found}
    if places != expected or len(found) != len(expected) or files != len(planted):
        sys.exit(f"the test itself is broken: expected {sorted(expected)}, found {found}")


def main():
    self_test()
    root = pathlib.Path(__file__).resolve().parent.parent
    found, files = violations(root)
    if files < 20:
        sys.exit(f"only {files} files below {root}: is this the project?")
    for line in found:
        print(line)
    print(f"{files} files, {len(found)} violations")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
