#include "pkg/transfer/decoding_sink.h"

#include <algorithm>
#include <string>

#include "pkg/base/names.h"

namespace bim::transfer {
namespace {

using base::Status;

// Enough for every magic.
constexpr size_t kMagicBytes = 6;

}  // namespace

Status DecodingSink::OnHead(const SourceHead& head) {
  head_ = head;
  decoder_.reset();
  pending_.clear();
  deciding_ = false;
  if (by_ == By::kMagic) {
    // In the middle of a file there is no magic.
    if (head.offset > 0) return next_.OnHead(head_);
    deciding_ = true;
    return base::OkStatus();
  }
  if (progress_ != nullptr) progress_->encoded_size = 0;
  const std::string encoding = std::move(head_.content_encoding);
  head_.content_encoding.clear();
  if (encoding.empty() || encoding == "identity") return next_.OnHead(head_);
  const auto known = compress::EncodingOfName(encoding);
  if (!known) {
    return base::FailedPreconditionError(
        "the server sent the content encoded as '" + base::Printable(encoding) +
        "'; expected none, gzip, xz or zstd");
  }
  return BeginDecoding(*known);
}

Status DecodingSink::BeginDecoding(compress::Encoding encoding) {
  decoder_ = compress::MakeDecoder(encoding, max_output_);
  if (progress_ != nullptr) {
    progress_->SetEncoding(std::string(compress::EncodingName(encoding)));
    // What is encoded twice has the size of the outer one.
    if (head_.size) progress_->encoded_size = *head_.size;
  }
  SourceHead head = head_;
  head.size.reset();
  head.validator.clear();
  head.ranges = false;
  head.content_type.clear();  // that of the archive
  return next_.OnHead(head);
}

Status DecodingSink::Decide() {
  deciding_ = false;
  if (const auto encoding = compress::EncodingOfHead(pending_)) {
    BIM_RETURN_IF_ERROR(BeginDecoding(*encoding));
  } else {
    BIM_RETURN_IF_ERROR(next_.OnHead(head_));
  }
  const std::vector<std::byte> pending = std::move(pending_);
  pending_.clear();
  return pending.empty() ? base::OkStatus() : Pass(pending);
}

Status DecodingSink::Pass(std::span<const std::byte> data) {
  if (!decoder_) return next_.OnData(data);
  return Decode([&](const compress::Decoder::Output& sink) {
    return decoder_->Feed(data, sink);
  });
}

Status DecodingSink::Decode(
    const std::function<Status(const compress::Decoder::Output&)>& decode) {
  bool next_failed = false;
  Status status = decode([&](std::span<const std::byte> decoded) {
    Status given = next_.OnData(decoded);
    next_failed = !given.ok();
    return given;
  });
  refused_ = refused_ || (!status.ok() && !next_failed);
  return status;
}

Status DecodingSink::OnData(std::span<const std::byte> data) {
  if (deciding_) {
    const size_t take = std::min(data.size(), kMagicBytes - pending_.size());
    pending_.insert(pending_.end(), data.begin(), data.begin() + take);
    data = data.subspan(take);
    if (pending_.size() < kMagicBytes) return base::OkStatus();
    BIM_RETURN_IF_ERROR(Decide());
  }
  return data.empty() ? base::OkStatus() : Pass(data);
}

Status DecodingSink::OnZeros(uint64_t count) {
  if (deciding_ && count > 0) {
    const size_t take = static_cast<size_t>(
        std::min<uint64_t>(count, kMagicBytes - pending_.size()));
    BIM_RETURN_IF_ERROR(OnData(std::vector<std::byte>(take)));
    count -= take;
  }
  if (count == 0) return base::OkStatus();
  if (!decoder_) return next_.OnZeros(count);
  const std::vector<std::byte> zeros(
      static_cast<size_t>(std::min<uint64_t>(count, 65'536)));
  for (uint64_t done = 0; done < count; done += zeros.size()) {
    BIM_RETURN_IF_ERROR(Pass(std::span(zeros).first(
        static_cast<size_t>(std::min<uint64_t>(zeros.size(), count - done)))));
  }
  return base::OkStatus();
}

Status DecodingSink::Finish() {
  if (deciding_) BIM_RETURN_IF_ERROR(Decide());
  if (!decoder_) return base::OkStatus();
  return Decode([&](const compress::Decoder::Output& sink) {
    return decoder_->Finish(sink);
  });
}

}  // namespace bim::transfer
