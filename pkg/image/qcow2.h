// Internal to the room: the qcow2 format, after QEMU's docs/interop/qcow2.txt
// and the limits that QEMU itself enforces (block/qcow2.c). The rules and the
// errors are those that probe.h tells.
#pragma once

#include <cstdint>

#include "pkg/base/status.h"
#include "pkg/image/bytes.h"
#include "pkg/image/reader.h"

namespace bim::image {

// The longest prefix of a file that ParseQcow2Header may insist on, in bytes.
inline constexpr size_t kQcow2HeaderBytes = 112;

// The fields that outlive the header's own checks. Offsets and sizes in bytes.
struct Qcow2Header {
  uint32_t version = 0;
  uint32_t cluster_bits = 0;
  uint64_t virtual_size = 0;
  uint32_t l1_entries = 0;
  uint64_t l1_offset = 0;
  uint64_t refcount_offset = 0;
  uint32_t refcount_clusters = 0;
  uint32_t snapshots = 0;
  uint64_t snapshots_offset = 0;
  bool extended_l2 = false;

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
};

// True for any version of the format, 1 included.
bool IsQcow(Bytes head);

// The rules that need no more than the header, given as much of the file's
// first cluster as there is: what lies beyond `head` is not judged. Reports
// DATA_LOSS if `head` ends within the fixed fields.
// Precondition: IsQcow(head).
base::Result<Qcow2Header> ParseQcow2Header(Bytes head);

// All the rules. Precondition: the file begins as IsQcow wants it.
base::Result<Qcow2Header> CheckQcow2(Reader& reader, uint64_t file_size);

// Fills `out` from `offset`; DATA_LOSS if the file ends before, contrary to the
// size that was given.
base::Status ReadFully(Reader& reader, uint64_t offset,
                       std::span<std::byte> out);

}  // namespace bim::image
