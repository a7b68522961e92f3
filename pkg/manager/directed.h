// Images that a caller directs copy by copy (Longhorn's control plane): each
// copy is asked for on one disk, from one source, and tried once. What failed
// stays failed until the caller removes it; nothing is filled from another
// disk, nothing is wanted that was not asked for. Plain values.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "pkg/base/digest.h"
#include "pkg/base/status.h"
#include "pkg/manager/types.h"

namespace bim::manager {

struct DirectedSpec {
  std::string name;
  std::string uuid;
  std::string disk;  // uuid or path; empty: the first disk
  // Expected, of the stored file; nullopt and 0: not stated.
  std::optional<base::Digest> sha512;
  uint64_t size = 0;  // bytes
  // Where the bytes come from when no fitting file lies at the image's place.
  // Without url, peers and upload there is no other source than that file.
  SourceSpec source;
  // Called, with nothing locked, when nothing lies at the image's place: makes
  // the data source give up its file (store::Place::kDataSource), which is then
  // moved there. Its failure is Direct's, or the copy's when a file had to be
  // judged first and was proven wrong. May be empty.
  std::function<base::Status()> claim_data_source;
};

// One copy.
struct DirectedStatus {
  std::string name;
  std::string uuid;
  std::optional<base::Digest> expected_sha512;
  std::optional<base::Digest> current_sha512;  // of a ready copy
  uint64_t size = 0;          // of the file when known, else as stated
  uint64_t virtual_size = 0;  // bytes, of a ready copy
  std::string sender;         // the peer asked for it, "host:port"
  uint32_t readers = 0;       // transfers that send it now
  int64_t mtime_ns = 0;       // of the file as it was proven
  bool checking = false;      // what lies at its place is being judged
  CopyStatus copy;
};

}  // namespace bim::manager
