// Bounded decoders of compressed streams: gzip, xz and zstd, fed piece by
// piece. The only place that knows zlib, liblzma and libzstd (with encoder.h).
//
// Memory is bounded whatever the stream claims: a window or dictionary of at
// most 128 MiB, output handed on in pieces of 256 KiB (the last one may be
// shorter), aligned to 4 KiB in memory. Output is bounded by the caller's
// limit. Concatenated members (gzip, xz, zstd frames, skippable ones included)
// are one stream, as their command line tools read them. Zeros may follow as
// padding: any number behind gzip, a multiple of four behind xz; other bytes
// behind the end are damage.
// Thread-safety: one call at a time per object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "pkg/base/status.h"

namespace bim::compress {

enum class Encoding { kGzip, kXz, kZstd };
// "gzip", "xz", "zstd".
std::string_view EncodingName(Encoding encoding);
// What a file that begins with `head` is compressed with. At least 6 bytes
// tell for sure; with fewer, nullopt. A zstd skippable frame's magic counts
// as zstd. Sources: RFC 1952 2.3.1, the .xz file format 2.1.1.1, RFC 8878 3.1.
std::optional<Encoding> EncodingOfHead(std::span<const std::byte> head);
// Of a Content-Encoding: "gzip", "x-gzip", "zstd", "xz", ignoring case.
std::optional<Encoding> EncodingOfName(std::string_view name);

class Decoder {
 public:
  // Takes decoded bytes; a failure ends the decoding and comes back.
  using Output = std::function<base::Status(std::span<const std::byte>)>;
  virtual ~Decoder() = default;

  // Feeds the next encoded bytes. FAILED_PRECONDITION: not readable as this
  // encoding, damaged, needs too much memory, or more than `max_output`
  // bytes came out ("... decodes to more than the N bytes that are allowed";
  // the first `max_output` bytes were handed out).
  // After a failure only destruction is allowed.
  virtual base::Status Feed(std::span<const std::byte> data,
                            const Output& output) = 0;
  // The stream ended: hands out the rest and says whether it is complete.
  // FAILED_PRECONDITION: "the gzip stream ends in the middle".
  virtual base::Status Finish(const Output& output) = 0;
  virtual uint64_t encoded_bytes() const = 0;  // fed so far
  virtual uint64_t decoded_bytes() const = 0;  // handed out so far
};

std::unique_ptr<Decoder> MakeDecoder(Encoding encoding, uint64_t max_output);

}  // namespace bim::compress
