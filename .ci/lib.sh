# Shared by run.sh, test.sh and .ci/run: sourced by bash, from the top folder.

die() { echo "error: $*" >&2; exit 1; }

# The Debian packages of these kinds (see .ci/packages) that are missing.
missing_packages() {
  local kind name
  while read -r kind name; do
    case " $* " in *" $kind "*) ;; *) continue ;; esac
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || echo "$name"
  done < <(grep -v '^#' .ci/packages)
}

install_packages() {
  local missing sudo=
  command -v dpkg-query >/dev/null || die "this needs Debian 12 (no dpkg here)"
  mapfile -t missing < <(missing_packages "$@")
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "missing packages and neither root nor sudo: ${missing[*]}"
    sudo=sudo
  fi
  echo "installing: ${missing[*]}"
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq || die "apt-get update failed"
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${missing[@]}" >/tmp/bim-apt.$$.log 2>&1 || { cat /tmp/bim-apt.$$.log; die "apt-get install failed"; }
  rm -f /tmp/bim-apt.$$.log
}

# build PRESET [TARGET ...]
build() {
  local preset=$1; shift
  export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
  cmake --preset "$preset" -DCMAKE_CXX_COMPILER_LAUNCHER=ccache >"build/$preset.log" 2>&1 ||
    { cat "build/$preset.log"; die "cmake --preset $preset failed"; }
  local targets=()
  [ $# -eq 0 ] || targets=(--target "$@")
  cmake --build --preset "$preset" "${targets[@]}" >"build/$preset.log" 2>&1 ||
    { grep -E 'error|FAILED' -A12 "build/$preset.log" | cut -c1-300 | head -120; die "the $preset build failed"; }
}
