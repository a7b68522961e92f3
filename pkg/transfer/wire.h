// How a part of a file travels between daemons: which of its bytes are data,
// then those, so that holes are never sent. Formats only.
//
// An extents body is: "BIMEXT01", then little-endian 64-bit numbers: begin, end
// (of the part of the file), count, and count pairs (begin, end) of its data
// extents, ascending, not overlapping, within [begin, end); then the bytes of
// these extents, one after the other, and nothing else. What is in no extent
// reads as zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/io/sparse.h"

namespace bim::transfer {

inline constexpr char kExtentsType[] = "application/x-bim-extents";
inline constexpr char kManifestType[] = "application/x-bim-manifest";
// The longest part of a file that one request may ask for, and the longest one
// that is sent compressed (it is compressed in memory).
inline constexpr uint64_t kMaxPart = 64 << 20;
inline constexpr uint64_t kMaxCompressedPart = 4 << 20;
// Extents in one answer; more are joined across their holes.
inline constexpr size_t kMaxExtents = 4096;

struct ExtentTable {
  uint64_t begin = 0;
  uint64_t end = 0;
  std::vector<io::Extent> data;
};
// The data of [begin, end) of an open file, by SEEK_DATA; at most kMaxExtents.
// What lies behind the end of the file is no data.
base::Result<ExtentTable> MapExtents(int fd, uint64_t begin, uint64_t end);
std::string EncodeExtentTable(const ExtentTable& table);

// Reads an extents body piece by piece; a value. Every number is checked: it
// comes from a peer.
class ExtentReader {
 public:
  // What was asked for.
  ExtentReader(uint64_t begin, uint64_t end) : begin_(begin), end_(end) {}

  // Hands on the bytes of [begin, end) in order. DATA_LOSS: not such a body,
  // or one of another part. A failure of a callback comes back. After a
  // failure only destruction is allowed.
  base::Status Feed(
      std::span<const std::byte> body,
      const std::function<base::Status(std::span<const std::byte>)>& on_data,
      const std::function<base::Status(uint64_t count)>& on_zeros);
  // The body ended. DATA_LOSS when bytes are missing.
  base::Status Finish(
      const std::function<base::Status(uint64_t count)>& on_zeros);

 private:
  base::Status ParseTable();

  const uint64_t begin_;
  const uint64_t end_;
  std::vector<std::byte> head_;  // until the table is complete
  std::optional<std::vector<io::Extent>> table_;
  size_t next_ = 0;  // extent in work
  uint64_t at_ = 0;  // bytes before this offset were handed on
};

}  // namespace bim::transfer
