// Compression, for the wire and for exports: zstd, and gzip for those who ask
// for that.
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

// A stream that is compressed as it comes, with a checksum of its content.
class Encoder {
 public:
  virtual ~Encoder() = default;
  // Appends to `out` what is ready; the rest comes later. At most a little
  // more than `data.size()` bytes plus what was buffered before (1 MiB).
  virtual base::Status Feed(std::span<const std::byte> data,
                            std::string& out) = 0;
  // Ends the stream.
  virtual base::Status Finish(std::string& out) = 0;
};

// One zstd frame; `level` 1 (fast) to 19. Long runs of zeros cost next to
// nothing.
std::unique_ptr<Encoder> MakeZstdEncoder(int level);
// One gzip member (RFC 1952); `level` 1 (fast) to 9.
std::unique_ptr<Encoder> MakeGzipEncoder(int level);

}  // namespace bim::compress
