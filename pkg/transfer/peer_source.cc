#include "pkg/transfer/peer_source.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <utility>

#include "pkg/base/names.h"
#include "pkg/compress/decoder.h"
#include "pkg/transfer/wire.h"

namespace bim::transfer {
namespace {

using base::Status;
using Clock = std::chrono::steady_clock;

// One request: small enough that those who wait for their turn get it soon.
constexpr uint64_t kRequestBytes = 16 << 20;
// Compressing pays off below this many bytes a second, as one core compresses.
constexpr double kSlowWay = 150e6;
// What has to be seen of the way before it is judged.
constexpr uint64_t kJudgeBytes = 8 << 20;
// After so many answers that did not compress it is asked for no more.
constexpr int kGiveUpCompression = 4;

}  // namespace

std::string ImageUrl(const PeerInfo& peer, const store::ImageKey& key) {
  const bool v6 = peer.ip.find(':') != std::string::npos;
  return "http://" + (v6 ? "[" + peer.ip + "]" : peer.ip) + ":" +
         std::to_string(peer.data_port) + "/v1/images/" + key.name + "/" +
         key.uuid + "/";
}

http::Deadlines DeadlinesOf(const PeerOptions& options) {
  http::Deadlines deadlines;
  deadlines.connect = options.connect;
  deadlines.first_byte = options.first_byte;
  deadlines.stall = options.stall;
  return deadlines;
}

// The body of one answer: decoded, and its extents handed on.
class PeerSource::Body : public http::Sink {
 public:
  Body(PeerSource& source, const Range& part, SourceSink& sink,
       std::stop_token stop)
      : source_(source),
        sink_(sink),
        stop_(std::move(stop)),
        length_(part.end - part.begin),
        reader_(part.begin, part.end) {}

  Status OnHead(const http::ResponseHead& head) override {
    if (head.status != 200 || head.content_type != kExtentsType) {
      return base::DataLossError("the answer is of type '" +
                                 base::Printable(head.content_type) +
                                 "', expected " + kExtentsType);
    }
    if (head.content_encoding == "zstd") {
      // The table, and all of the part.
      decoder_ = compress::MakeDecoder(
          compress::Encoding::kZstd,
          length_ + 64 + kMaxExtents * sizeof(io::Extent));
    } else if (!head.content_encoding.empty()) {
      return base::DataLossError("the answer is encoded as '" +
                                 base::Printable(head.content_encoding) +
                                 "', expected zstd or nothing");
    }
    return base::OkStatus();
  }

  Status OnData(std::span<const std::byte> data) override {
    const auto before = Clock::now();
    if (source_.limiter_ != nullptr &&
        !source_.limiter_->Wait(data.size(), stop_)) {
      return base::CancelledError("stopped");
    }
    if (source_.progress_ != nullptr) {
      source_.progress_->wire_bytes += data.size();
    }
    wire_bytes_ += data.size();
    Status status;
    if (decoder_) {
      status = decoder_->Feed(data, [this](std::span<const std::byte> plain) {
        return Take(plain);
      });
      // A body that cannot be decoded is a wrong one.
      if (!status.ok() && !sink_failed_) {
        status = base::DataLossError(status.message());
      }
    } else {
      status = Take(data);
    }
    inside_ += Clock::now() - before;
    return status;
  }

  Status Finish() {
    if (decoder_) {
      const Status ended = decoder_->Finish(
          [this](std::span<const std::byte> plain) { return Take(plain); });
      if (!ended.ok()) {
        return sink_failed_ ? ended : base::DataLossError(ended.message());
      }
    }
    return reader_.Finish([this](uint64_t count) { return Zeros(count); });
  }

  bool compressed() const { return decoder_ != nullptr; }
  // The failure is the sink's, not the peer's.
  bool sink_failed() const { return sink_failed_; }
  uint64_t wire_bytes() const { return wire_bytes_; }
  Clock::duration inside() const { return inside_; }

 private:
  Status Take(std::span<const std::byte> plain) {
    return reader_.Feed(
        plain,
        [this](std::span<const std::byte> data) {
          Status status = sink_.OnData(data);
          sink_failed_ = !status.ok();
          return status;
        },
        [this](uint64_t count) { return Zeros(count); });
  }
  Status Zeros(uint64_t count) {
    Status status = sink_.OnZeros(count);
    sink_failed_ = !status.ok();
    return status;
  }

  PeerSource& source_;
  SourceSink& sink_;
  const std::stop_token stop_;
  const uint64_t length_;
  ExtentReader reader_;
  std::unique_ptr<compress::Decoder> decoder_;
  bool sink_failed_ = false;
  uint64_t wire_bytes_ = 0;
  Clock::duration inside_{0};  // spent on our side
};

PeerSource::PeerSource(const Peer& peer, const store::ImageRecord& manifest,
                       const PeerOptions& options, exec::RateLimiter* limiter,
                       Progress* progress)
    : address_(peer.address),
      url_(ImageUrl(*peer.info, manifest.key) + "extents"),
      manifest_(manifest),
      options_(options),
      limiter_(limiter),
      progress_(progress),
      client_(http::Client::Make()) {}

bool PeerSource::WantsCompression() const {
  if (not_compressed_ >= kGiveUpCompression) return false;
  switch (options_.compression) {
    case WireCompression::kOff:
      return false;
    case WireCompression::kOn:
      return true;
    case WireCompression::kAuto:
      break;
  }
  if (limiter_ != nullptr) {
    const uint64_t limit = limiter_->rate();
    if (limit > 0 && static_cast<double>(limit) < kSlowWay) return true;
  }
  return raw_bytes_ >= kJudgeBytes && raw_seconds_ > 0 &&
         static_cast<double>(raw_bytes_) / raw_seconds_ < kSlowWay;
}

Outcome PeerSource::Read(const Range& range, const std::string& validator,
                         SourceSink& sink, std::stop_token stop) {
  SourceHead head;
  head.size = manifest_.stamp.size;
  head.offset = range.begin;
  head.validator = validator;
  head.ranges = true;
  if (Status status = sink.OnHead(head); !status.ok()) {
    return {Failure::kPermanent, std::move(status), {}};
  }
  for (uint64_t at = range.begin; at < range.end;) {
    const uint64_t most =
        WantsCompression() ? kMaxCompressedPart : kRequestBytes;
    const Range part{at, std::min(range.end, at + most)};
    Outcome outcome = ReadPart(part, sink, stop);
    if (outcome.failure != Failure::kNone) return outcome;
    at = part.end;
  }
  return {};
}

Outcome PeerSource::ReadPart(const Range& part, SourceSink& sink,
                             std::stop_token stop) {
  http::GetRequest request;
  request.url = url_ + "?begin=" + std::to_string(part.begin) +
                "&end=" + std::to_string(part.end);
  request.headers.push_back("If-Match: \"" + ValidatorOf(manifest_.sha512) +
                            "\"");
  const bool ask_zstd = WantsCompression();
  if (ask_zstd) request.headers.push_back("Accept-Encoding: zstd");
  request.proxy = "none";
  request.max_redirects = 0;
  request.deadlines = DeadlinesOf(options_);
  Body body(*this, part, sink, stop);
  const auto before = Clock::now();
  http::Outcome got = client_->Get(request, body, stop);
  if (got.failure == http::Failure::kNone) {
    Status ended = body.Finish();
    if (!ended.ok()) {
      return {body.sink_failed() ? Failure::kPermanent : Failure::kTransient,
              std::move(ended),
              {}};
    }
    if (body.compressed()) {
      not_compressed_ = 0;
    } else {
      if (ask_zstd) ++not_compressed_;
      raw_bytes_ += body.wire_bytes();
      raw_seconds_ +=
          std::chrono::duration<double>(Clock::now() - before - body.inside())
              .count();
    }
    return {};
  }
  if (got.failure == http::Failure::kCancelled) {
    return {Failure::kCancelled, std::move(got.status), {}};
  }
  if (got.http_status == 412) {
    return {Failure::kTransient,
            base::FailedPreconditionError("it has another image there now"),
            {}};
  }
  return {body.sink_failed() ? Failure::kPermanent : Failure::kTransient,
          std::move(got.status), got.retry_after};
}

}  // namespace bim::transfer
