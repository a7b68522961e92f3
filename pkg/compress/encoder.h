// zstd compression, for the wire and for exports.
// Thread-safety: one call at a time per object; the function from any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "pkg/base/status.h"

namespace bim::compress {

// A whole piece at once, `level` 1 (fast) to 19. Empty when it would not get
// smaller than `data`.
std::string CompressZstd(std::span<const std::byte> data, int level);

// A stream of one zstd frame with a content checksum. Long runs of zeros
// cost next to nothing.
class ZstdEncoder {
 public:
  static std::unique_ptr<ZstdEncoder> Make(int level);
  virtual ~ZstdEncoder() = default;
  // Appends to `out` what is ready; the rest comes later. At most a little
  // more than `data.size()` bytes plus what was buffered before (1 MiB).
  virtual base::Status Feed(std::span<const std::byte> data,
                            std::string& out) = 0;
  // Ends the frame.
  virtual base::Status Finish(std::string& out) = 0;
};

}  // namespace bim::compress
