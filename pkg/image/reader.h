// Where this room reads an image from: it opens no file itself, so that every
// rule can be tested from memory.
//
// An implementation may block. It is used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pkg/base/status.h"

namespace bim::image {

class Reader {
 public:
  Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  virtual ~Reader() = default;

  // Fills `out` with the bytes from `offset` (bytes from the start) on, and
  // returns how many it filled: fewer than out.size() only where the file ends
  // first, 0 at or beyond its end. A failure is the implementation's own and
  // reaches the caller of this room unchanged but for its context.
  virtual base::Result<size_t> ReadAt(uint64_t offset,
                                      std::span<std::byte> out) = 0;
};

}  // namespace bim::image
