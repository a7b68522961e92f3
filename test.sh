#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test.
#
#   ./test.sh [--long] [--preset dev|asan|tsan] [-- PYTEST-ARGUMENTS]
#
# --long also runs what needs more time; --preset asan runs the same tests in a
# build with AddressSanitizer and UBSan (of end-to-end tests with many inputs
# every fourth input, with --long all), --preset tsan the unit tests of all rooms
# below gRPC that have threads, with ThreadSanitizer.
set -euo pipefail
cd "$(dirname "$0")"
preset=dev long=0
while [ $# -gt 0 ]; do
  case "$1" in
    --long) long=1 ;;
    --preset) preset=${2:-}; shift ;;
    --preset=*) preset=${1#*=} ;;
    --) shift; break ;;
    -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "test.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift
done
case "$preset" in dev|asan|tsan) ;; *) echo "test.sh: --preset is dev, asan or tsan, not '$preset'" >&2; exit 2 ;; esac
. .ci/lib.sh
mkdir -p build
install_packages build run test

export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0:detect_stack_use_after_return=0
export LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1
# (Huge pages for the shadow memory: without them buffers cost more than tests.)
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:no_huge_pages_for_shadow=0
[ "$preset" = dev ] || export BIM_TEST_SLOWDOWN=4

echo "== build ($preset)"
build "$preset"
if [ "$preset" = dev ]; then
  echo "== layers, formats, failpoints"
  /usr/bin/python3 tests/layers_test.py
  /usr/bin/python3 tests/format_test.py
  # A release build must not contain failpoints. (This one is quickly compiled.)
  cmake --preset release -B build/release-check -DBIM_GRPC=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
    -DCMAKE_CXX_COMPILER_LAUNCHER=ccache >build/release-check.log
  cmake --build build/release-check >>build/release-check.log 2>&1 ||
    { tail -50 build/release-check.log; exit 1; }
  grep -q 'store\.commit\.sealed' build/dev/libbim_store.a || die "the dev build has no failpoints"
  for library in build/release-check/libbim_*.a; do
    ! grep -qE 'store\.commit\.|BIM_FAILPOINTS|ReachFailpoint' "$library" ||
      die "failpoints in the release build: $library"
  done
fi
if [ "$preset" != tsan ]; then
  echo "== build (the previous release)"
  tests/e2e/previous_release.sh || [ $? = 3 ]
fi
echo "== unit tests"
ctest --test-dir "build/$preset" --output-on-failure -j4
if [ "$preset" != tsan ]; then
  echo "== end-to-end tests"
  export BIM_BINARY=$PWD/build/$preset/bim
  [ "$preset" = dev ] || [ "$long" = 1 ] || export BIM_TEST_SAMPLE=4
  # Most tests wait for something: eight at a time keep two cores busy.
  BIM_TEST_LONG=$long /usr/bin/python3 -m pytest -q -n 8 --dist loadgroup tests/e2e "$@"
fi
