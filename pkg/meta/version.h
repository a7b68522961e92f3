// The version numbers of this program: the only place to bump.
//
// A newer compatible manager raises kApiVersion; one that no longer speaks to
// older ones also raises kApiMinVersion. The same holds for the disk format
// (the layout of <disk>/.bim and of backing.bim). The build can override each
// (CMake: -DBIM_API_VERSION=5 ...), so that tests run newer and incompatible
// managers.
#pragma once

namespace bim::meta {

#ifndef BIM_API_VERSION
#define BIM_API_VERSION 4
#endif
#ifndef BIM_API_MIN_VERSION
#define BIM_API_MIN_VERSION 3
#endif
#ifndef BIM_LONGHORN_API_VERSION
#define BIM_LONGHORN_API_VERSION 3
#endif
#ifndef BIM_LONGHORN_API_MIN_VERSION
#define BIM_LONGHORN_API_MIN_VERSION 3
#endif
#ifndef BIM_DISK_FORMAT_VERSION
#define BIM_DISK_FORMAT_VERSION 1
#endif
#ifndef BIM_DISK_FORMAT_MIN_VERSION
#define BIM_DISK_FORMAT_MIN_VERSION 1
#endif

// Constants of the program, not of its translation units: tests link the same
// objects with other numbers (CMake: bim_edition). All are known before any
// code runs.
extern const int kApiVersion;
extern const int kApiMinVersion;
// What Longhorn's control plane is told: versions of its API (proto/bimrpc),
// not of ours.
extern const int kLonghornApiVersion;
extern const int kLonghornApiMinVersion;
extern const int kDiskFormatVersion;
extern const int kDiskFormatMinVersion;

// A closed range of versions that one side speaks. A value.
struct VersionRange {
  int min = 0;
  int max = 0;
  friend bool operator==(const VersionRange&, const VersionRange&) = default;
};

// True when two sides share a version.
constexpr bool Overlap(const VersionRange& a, const VersionRange& b) {
  return a.min <= b.max && b.min <= a.max;
}

// What this build is: "0.1.0", the commit it was made from ("unknown" outside
// a checkout) and the day of the build in UTC.
const char* Version();
const char* GitCommit();
const char* BuildDate();

}  // namespace bim::meta
