#include "pkg/transfer/pull.h"

#include <algorithm>
#include <string>
#include <vector>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/image/probe.h"

namespace bim::transfer {
namespace {

using base::Code;
using base::Status;

// How much is looked at before anything is stored.
constexpr size_t kHeadBytes = 4096;

// Judges what comes and feeds the ingest. Remembers whose failure it was.
class IngestSink : public SourceSink {
 public:
  IngestSink(store::Ingest& ingest, const PullSpec& spec,
             const std::function<void()>& on_bytes, std::stop_token stop)
      : ingest_(ingest), spec_(spec), on_bytes_(on_bytes), stop_(stop) {}

  Status OnHead(const SourceHead& head) override {
    head_ = head;
    began_ = true;
    on_bytes_();
    resumed_ = head.offset;
    checking_ = head.offset == 0;
    if (!checking_) return base::OkStatus();
    // A bad size is reported once the first bytes are seen: an error page
    // says more than its odd length. Nothing is stored in between.
    size_problem_ = CheckSize(head.size);
    return head.size && *head.size == 0 ? Refuse(size_problem_)
                                        : base::OkStatus();
  }

  Status OnData(std::span<const std::byte> data) override {
    if (checking_) {
      const size_t take = std::min(data.size(), kHeadBytes - pending_.size());
      pending_.insert(pending_.end(), data.begin(), data.begin() + take);
      data = data.subspan(take);
      const bool whole = head_.size && pending_.size() >= *head_.size;
      if (pending_.size() < kHeadBytes && !whole) return base::OkStatus();
      if (Status status = CheckPending(whole); !status.ok()) return status;
    }
    if (data.empty()) return base::OkStatus();
    return Store(ingest_.Append(data, stop_));
  }

  Status OnZeros(uint64_t count) override {
    if (checking_) {
      const size_t take = static_cast<size_t>(
          std::min<uint64_t>(count, kHeadBytes - pending_.size()));
      if (Status status = OnData(std::vector<std::byte>(take)); !status.ok()) {
        return status;
      }
      count -= take;
      if (checking_) return base::OkStatus();
    }
    return Store(ingest_.AppendZeros(count, stop_));
  }

  // The source yielded all it has.
  Status OnEnd() {
    if (checking_ && !head_.size) return CheckPending(true);
    return base::OkStatus();
  }

  bool began() const { return began_; }
  bool refused() const { return refused_; }
  bool ingest_failed() const { return ingest_failed_; }
  std::optional<uint64_t> size() const { return head_.size; }
  uint64_t resumed() const { return resumed_; }

 private:
  // The content is proven wrong.
  Status Refuse(Status status) {
    refused_ = true;
    return status;
  }

  Status CheckSize(std::optional<uint64_t> size) const {
    if (!size) return base::OkStatus();
    if (*size == 0) {
      return base::FailedPreconditionError("the source's file is empty");
    }
    if (*size % 512 != 0) {
      return base::FailedPreconditionError(
          "the source's file has a size of " + std::to_string(*size) +
          " bytes, which is not a multiple of 512");
    }
    if (spec_.expected_size != 0 && *size != spec_.expected_size) {
      return base::FailedPreconditionError(
          "wrong size: expected " + std::to_string(spec_.expected_size) +
          " bytes, the source's file has " + std::to_string(*size));
    }
    if (spec_.max_size != 0 && *size > spec_.max_size) {
      return base::FailedPreconditionError(
          "the source's file has " + std::to_string(*size) +
          " bytes, at most " + std::to_string(spec_.max_size) +
          " are allowed (sources.max_image_size)");
    }
    return base::OkStatus();
  }

  // The first bytes are there: are they an image's?
  Status CheckPending(bool whole) {
    checking_ = false;
    if (Status status = image::CheckHead(pending_, whole, head_.content_type);
        !status.ok()) {
      return Refuse(std::move(status));
    }
    if (!size_problem_.ok()) return Refuse(size_problem_);
    BIM_RETURN_IF_ERROR(Store(ingest_.Begin(head_.size, head_.validator)));
    const std::vector<std::byte> pending = std::move(pending_);
    return Store(ingest_.Append(pending, stop_));
  }

  Status Store(Status status) {
    if (!head_.size && status.ok() && spec_.expected_size != 0 &&
        ingest_.position() > spec_.expected_size) {
      return Refuse(base::FailedPreconditionError(
          "wrong size: expected " + std::to_string(spec_.expected_size) +
          " bytes, the source sent more"));
    }
    if (!head_.size && spec_.max_size != 0 &&
        ingest_.position() > spec_.max_size) {
      return Refuse(base::FailedPreconditionError(
          "the source does not tell the size of its file and sent more than "
          "the " +
          std::to_string(spec_.max_size) +
          " bytes that are allowed (sources.max_image_size)"));
    }
    if (status.code() == Code::kOutOfRange) return Refuse(std::move(status));
    if (!status.ok()) ingest_failed_ = true;
    return status;
  }

  store::Ingest& ingest_;
  const PullSpec& spec_;
  const std::function<void()>& on_bytes_;
  const std::stop_token stop_;
  SourceHead head_;
  Status size_problem_;
  bool checking_ = false;
  std::vector<std::byte> pending_;
  bool began_ = false;
  bool refused_ = false;
  bool ingest_failed_ = false;
  uint64_t resumed_ = 0;
};

// Whose fault a failure of the ingest is.
Failure Classify(const Status& status) {
  switch (status.code()) {
    case Code::kCancelled:
      return Failure::kCancelled;
    case Code::kFailedPrecondition:
    case Code::kInvalidArgument:
    case Code::kAlreadyExists:
    case Code::kOutOfRange:
    case Code::kDataLoss:
      return Failure::kPermanent;
    default:
      return Failure::kDisk;
  }
}

Outcome FromIngest(Status status) {
  const Failure failure = Classify(status);
  return {failure, std::move(status), std::nullopt};
}

}  // namespace

PullResult Pull(Source& source, store::Ingest& ingest, const PullSpec& spec,
                const std::function<void()>& on_bytes, std::stop_token stop) {
  PullResult result;
  std::string validator =
      ingest.begun() ? ingest.validator() : ingest.partial_validator();
  if (!ingest.begun() && !validator.empty()) {
    // What an earlier process left.
    if (spec.expected_size != 0 &&
        ingest.partial_size() != spec.expected_size) {
      validator.clear();
    } else if (Status restored = ingest.Restore(stop); !restored.ok()) {
      result.outcome = FromIngest(std::move(restored));
      return result;
    }
  }
  IngestSink sink(ingest, spec, on_bytes, stop);
  const uint64_t offset =
      ingest.begun() && !validator.empty() ? ingest.position() : 0;
  // All of it may be there already.
  const bool complete = offset > 0 && offset == ingest.total_bytes();
  if (!complete) result.outcome = source.Read(offset, validator, sink, stop);
  result.resumed_bytes = complete ? offset : sink.resumed();
  if (result.outcome.failure == Failure::kNone) {
    if (Status ended = sink.OnEnd(); !ended.ok()) {
      result.outcome = {Failure::kPermanent, std::move(ended), std::nullopt};
    }
  }
  Outcome& outcome = result.outcome;
  if (sink.ingest_failed() && !outcome.status.ok()) {
    outcome.failure = Classify(outcome.status);
  }
  if (stop.stop_requested() && outcome.failure != Failure::kNone) {
    outcome.failure = Failure::kCancelled;
  }
  if (outcome.failure == Failure::kNone && sink.size() &&
      ingest.position() != *sink.size()) {
    outcome = {
        Failure::kTransient,
        base::UnavailableError(
            "the source ended early: " + std::to_string(ingest.position()) +
            " of " + std::to_string(*sink.size()) + " bytes came"),
        std::nullopt};
  }
  if (outcome.failure == Failure::kNone && spec.expected_size != 0 &&
      ingest.position() != spec.expected_size) {
    outcome = {
        Failure::kPermanent,
        base::FailedPreconditionError(
            "wrong size: expected " + std::to_string(spec.expected_size) +
            " bytes, the source sent " + std::to_string(ingest.position())),
        std::nullopt};
    (void)ingest.Discard();
  }
  // Bytes of a content that is proven wrong are of no use. (A source that
  // refused before it sent any said nothing about those that are there.)
  if (sink.refused() ||
      (outcome.failure == Failure::kPermanent && sink.began())) {
    (void)ingest.Discard();
  }
  if (outcome.failure != Failure::kNone) return result;
  BIM_FAILPOINT("transfer.pull.received");
  auto record = ingest.Commit(stop);
  if (!record.ok()) {
    outcome = FromIngest(record.status());
    return result;
  }
  result.record = *std::move(record);
  return result;
}

}  // namespace bim::transfer
