// Decodes what a source sends, on its way to a sink: by what the source says
// (Content-Encoding) or by the file's first bytes. What is not encoded passes
// untouched. Encoded content has no known size and cannot be resumed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "pkg/compress/decoder.h"
#include "pkg/transfer/pull.h"
#include "pkg/transfer/source.h"

namespace bim::transfer {

class DecodingSink : public SourceSink {
 public:
  enum class By { kHeader, kMagic };
  // `next` and `progress` (may be null) outlive it. At most `max_output` bytes
  // come out of an encoded source.
  DecodingSink(By by, SourceSink& next, uint64_t max_output, Progress* progress)
      : by_(by), next_(next), max_output_(max_output), progress_(progress) {}

  base::Status OnHead(const SourceHead& head) override;
  base::Status OnData(std::span<const std::byte> data) override;
  base::Status OnZeros(uint64_t count) override;
  // The source yielded all it has.
  base::Status Finish();
  bool decoding() const { return decoder_ != nullptr; }
  // What is encoded is broken, or too much: not the next one's failure.
  bool refused() const { return refused_; }

 private:
  base::Status BeginDecoding(compress::Encoding encoding);
  // The first bytes are there, or there are no more: which is it?
  base::Status Decide();
  base::Status Pass(std::span<const std::byte> data);
  // Calls `decode` with a sink, and tells whose failure it was.
  base::Status Decode(
      const std::function<base::Status(const compress::Decoder::Output&)>&
          decode);

  const By by_;
  SourceSink& next_;
  const uint64_t max_output_;
  Progress* const progress_;
  SourceHead head_;
  bool deciding_ = false;
  bool refused_ = false;
  std::vector<std::byte> pending_;
  std::unique_ptr<compress::Decoder> decoder_;
};

}  // namespace bim::transfer
