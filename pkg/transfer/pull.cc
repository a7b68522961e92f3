#include "pkg/transfer/pull.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/image/probe.h"
#include "pkg/transfer/decoding_sink.h"
#include "pkg/transfer/lanes.h"
#include "pkg/transfer/range_queue.h"

namespace bim::transfer {
namespace {

using base::Code;
using base::Status;
using Clock = std::chrono::steady_clock;

// How much is looked at before anything is stored.
constexpr size_t kHeadBytes = 4096;
// A file of which less is missing is not worth another connection.
constexpr uint64_t kWorthLanes = 32 << 20;
// Ranges are cut at multiples of this, and of a chunk.
constexpr uint64_t kCutAlign = 1 << 20;

// The lanes of one source: each a clone of it.
class CloneLanes : public LaneSources {
 public:
  CloneLanes(Source& source, size_t max) : source_(source), clones_(max) {}

  // Whether there can be more lanes than the first.
  bool Offer() {
    spare_ = source_.Clone();
    return spare_ != nullptr;
  }
  Source* Open(size_t lane) override {
    std::lock_guard lock(mutex_);
    // Lane 0, too: the source's own connection is broken off by a cut.
    if (!clones_[lane]) {
      clones_[lane] = spare_ ? std::move(spare_) : source_.Clone();
    }
    if (clones_[lane]) return clones_[lane].get();
    return lane == 0 ? &source_ : nullptr;
  }
  void Close(size_t lane) override {
    std::lock_guard lock(mutex_);
    clones_[lane].reset();
  }
  Next OnFailure(size_t, const Outcome&, bool, std::stop_token) override {
    return Next::kEnd;
  }
  void OnSuccess(size_t, uint64_t, double) override {}
  std::optional<size_t> TooSlow(const std::vector<double>&) override {
    return std::nullopt;
  }

 private:
  Source& source_;
  std::mutex mutex_;
  std::unique_ptr<Source> spare_;
  std::vector<std::unique_ptr<Source>> clones_;
};

// Takes the first read: judges what comes, begins the ingest (or goes on where
// it is), and gives it the bytes, until the end, or until the range was cut
// because other lanes help. Without sources there are no lanes: all bytes come
// in order, those that are there already, too. Remembers whose failure it was.
class FirstSink : public SourceSink {
 public:
  FirstSink(store::Ingest& ingest, const PullSpec& spec,
            const std::function<void()>& on_bytes, CloneLanes* sources,
            std::stop_token stop)
      : ingest_(ingest),
        spec_(spec),
        on_bytes_(on_bytes),
        sources_(sources),
        stop_(stop) {}

  ~FirstSink() override { EndWriter(); }

  Status OnHead(const SourceHead& head) override {
    head_ = head;
    began_ = true;
    resumed_ = head.offset > 0 ? ingest_.stored_bytes() : 0;
    on_bytes_();
    checking_ = head.offset == 0;
    if (!checking_) {
      if (head.size != ingest_.total_bytes()) {
        changed_ = true;
        return base::AbortedError(
            "the source's file has another size than before");
      }
      Attach();
      return base::OkStatus();
    }
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
    if (sources_ == nullptr) return InOrder(ingest_.Append(data, stop_));
    return Give(data.size(), [&](uint64_t from, uint64_t count) {
      return writer_->Append(data.subspan(from, count), stop_);
    });
  }

  Status OnZeros(uint64_t count) override {
    if (checking_) {
      const size_t take = static_cast<size_t>(
          std::min<uint64_t>(count, kHeadBytes - pending_.size()));
      if (Status status = OnData(std::vector<std::byte>(take)); !status.ok()) {
        return status;
      }
      count -= take;
      if (checking_ || count == 0) return base::OkStatus();
    }
    if (sources_ == nullptr) return InOrder(ingest_.AppendZeros(count, stop_));
    return Give(count, [&](uint64_t, uint64_t part) {
      return writer_->AppendZeros(part, stop_);
    });
  }

  // The source yielded all it has.
  Status OnEnd() {
    if (checking_ && !head_.size) return CheckPending(true);
    return base::OkStatus();
  }
  // The read is over: what came is the ingest's.
  void EndWriter() {
    if (!writer_) return;
    const uint64_t position = writer_->position();
    writer_.reset();
    if (ingest_.reference()) {
      const io::Extent now = queue_->RangeOf(claim_);
      queue_->Return(claim_, position < now.end
                                 ? position - position % ingest_.chunk_size()
                                 : position);
    } else {
      queue_->Return(claim_, position);
    }
    claim_ = nullptr;
  }

  bool began() const { return began_; }
  bool refused() const { return refused_; }
  bool ingest_failed() const { return ingest_failed_; }
  bool enough() const { return enough_; }
  // The content is another one, although its validator is the same.
  bool changed() const { return changed_; }
  std::optional<uint64_t> size() const { return head_.size; }
  uint64_t resumed() const { return resumed_; }
  // Null when nothing was begun.
  LaneGroup* group() { return group_.get(); }

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
    EndWriter();
    group_.reset();
    queue_.reset();
    if (Status begun = ingest_.Begin(head_.size, head_.validator);
        !begun.ok()) {
      ingest_failed_ = true;
      return begun;
    }
    Attach();
    const std::vector<std::byte> pending = std::move(pending_);
    return OnData(pending);
  }

  // The ingest has begun: takes what is missing, all of it at first.
  void Attach() {
    if (sources_ == nullptr) return;
    queue_ =
        std::make_unique<RangeQueue>(std::max(kCutAlign, ingest_.chunk_size()));
    queue_->Add(ingest_.Missing());
    claim_ = queue_->Take(0, 0);
    BIM_CHECK(claim_ != nullptr);
    const io::Extent range = queue_->RangeOf(claim_);
    writer_ = ingest_.Write(range.begin, range.end);
    group_ =
        std::make_unique<LaneGroup>(ingest_, *queue_, *sources_, spec_, stop_);
    if (head_.ranges && head_.size && !head_.validator.empty() &&
        queue_->remaining() > kWorthLanes && sources_->Offer()) {
      group_->StartMonitor();
    }
  }

  // `append` gives `count` bytes from `from` on.
  template <typename Append>
  Status Give(uint64_t count, Append append) {
    for (uint64_t done = 0; done < count;) {
      const auto before = Clock::now();
      const uint64_t take = queue_->Advance(claim_, count - done);
      Status status = take > 0 ? append(done, take) : base::OkStatus();
      group_->Count(0, take, Clock::now() - before);
      if (!status.ok()) {
        ingest_failed_ = true;
        return status;
      }
      done += take;
      const io::Extent left = queue_->RangeOf(claim_);
      if (left.begin < left.end) continue;
      if (left.end == head_.size.value_or(left.end)) {
        if (done == count) break;
        return Refuse(base::OutOfRangeError(
            "more bytes came than the " + std::to_string(left.end) +
            (head_.size ? " announced"
                        : " that a file of unknown size may have")));
      }
      // Cut, because others help; on, where nobody does.
      if (!queue_->Extend(claim_, group_->SegmentBytes())) {
        enough_ = true;
        return base::OutOfRangeError("enough");
      }
      const io::Extent more = queue_->RangeOf(claim_);
      writer_.reset();
      writer_ = ingest_.Write(more.begin, more.end);
    }
    return CheckUnknownSize(queue_->RangeOf(claim_).begin);
  }

  // What was given without lanes.
  Status InOrder(Status status) {
    if (status.code() == Code::kOutOfRange) return Refuse(std::move(status));
    if (!status.ok()) {
      ingest_failed_ = true;
      return status;
    }
    return CheckUnknownSize(ingest_.position());
  }

  // So much came of a file of which the source does not tell the size.
  Status CheckUnknownSize(uint64_t came) {
    if (head_.size) return base::OkStatus();
    if (spec_.expected_size != 0 && came > spec_.expected_size) {
      return Refuse(base::FailedPreconditionError(
          "wrong size: expected " + std::to_string(spec_.expected_size) +
          " bytes, the source sent more"));
    }
    if (spec_.max_size != 0 && came > spec_.max_size) {
      return Refuse(base::FailedPreconditionError(
          "the source does not tell the size of its file and sent more than "
          "the " +
          std::to_string(spec_.max_size) +
          " bytes that are allowed (sources.max_image_size)"));
    }
    return base::OkStatus();
  }

  store::Ingest& ingest_;
  const PullSpec& spec_;
  const std::function<void()>& on_bytes_;
  CloneLanes* const sources_;
  const std::stop_token stop_;
  SourceHead head_;
  Status size_problem_;
  bool checking_ = false;
  std::vector<std::byte> pending_;
  bool began_ = false;
  bool refused_ = false;
  bool ingest_failed_ = false;
  bool enough_ = false;
  bool changed_ = false;
  uint64_t resumed_ = 0;
  std::unique_ptr<RangeQueue> queue_;
  RangeQueue::Claim* claim_ = nullptr;
  std::unique_ptr<store::IngestWriter> writer_;
  std::unique_ptr<LaneGroup> group_;
};

// Counts what comes over the wire, before it is decoded, and holds it back.
class CountingSink : public SourceSink {
 public:
  CountingSink(SourceSink& next, const PullSpec& spec, std::stop_token stop)
      : next_(next),
        progress_(spec.progress),
        limiter_(spec.limiter),
        stop_(std::move(stop)) {}
  Status OnHead(const SourceHead& head) override { return next_.OnHead(head); }
  Status OnData(std::span<const std::byte> data) override {
    if (progress_ != nullptr) progress_->wire_bytes += data.size();
    if (limiter_ != nullptr && !limiter_->Wait(data.size(), stop_)) {
      return base::CancelledError("stopped");
    }
    return next_.OnData(data);
  }
  Status OnZeros(uint64_t count) override { return next_.OnZeros(count); }

 private:
  SourceSink& next_;
  Progress* const progress_;
  exec::RateLimiter* const limiter_;
  const std::stop_token stop_;
};

Outcome FromIngest(Status status) {
  const Failure failure = ClassifyIngest(status);
  return {failure, std::move(status), std::nullopt};
}

uint64_t MissingBytes(store::Ingest& ingest) {
  uint64_t bytes = 0;
  for (const io::Extent& range : ingest.Missing()) {
    bytes += range.end - range.begin;
  }
  return bytes;
}

// What a source that is encoded may decode to.
uint64_t MaxOutput(const PullSpec& spec) {
  const uint64_t limit =
      spec.expected_size != 0 ? spec.expected_size : spec.max_size;
  return limit != 0 ? limit : UINT64_MAX;
}

// Goes on with what an earlier process left. False: nothing of it fits.
base::Result<bool> RestorePartial(store::Ingest& ingest, const PullSpec& spec,
                                  std::stop_token stop) {
  if (ingest.begun()) return !ingest.validator().empty();
  if (ingest.partial_validator().empty()) return false;
  if (spec.expected_size != 0 && ingest.partial_size() != spec.expected_size) {
    return false;
  }
  BIM_RETURN_IF_ERROR(ingest.Restore(stop));
  return ingest.begun() && ingest.stored_bytes() > 0;
}

// Everything up to the last byte. `ranges_refused`: the source announced
// ranges, and does not give them.
Outcome Receive(Source& source, store::Ingest& ingest, const PullSpec& spec,
                const std::function<void()>& on_bytes, PullResult& result,
                bool& ranges_refused, std::stop_token stop) {
  auto restored = RestorePartial(ingest, spec, stop);
  if (!restored.ok()) return FromIngest(restored.status());
  uint64_t offset = 0;
  std::string validator;
  if (*restored) {
    const auto missing = ingest.Missing();
    if (missing.empty()) {
      result.resumed_bytes = ingest.stored_bytes();
      return {};  // all of it is there already
    }
    offset = missing.front().begin;
    if (offset > 0) validator = ingest.validator();
  }
  CloneLanes lanes(source, std::max<size_t>(1, spec.connections));
  FirstSink first(ingest, spec, on_bytes, &lanes, stop);
  const uint64_t max_output = MaxOutput(spec);
  DecodingSink by_magic(DecodingSink::By::kMagic, first, max_output,
                        spec.progress);
  DecodingSink by_header(DecodingSink::By::kHeader, by_magic, max_output,
                         spec.progress);
  CountingSink counting(by_header, spec, stop);
  Outcome outcome =
      source.Read({offset, Range::kOpen}, validator, counting, stop);
  result.resumed_bytes = first.resumed();
  if (outcome.failure == Failure::kNone) {
    Status ended = by_header.Finish();
    if (ended.ok()) ended = by_magic.Finish();
    if (ended.ok()) ended = first.OnEnd();
    if (!ended.ok()) outcome = {Failure::kPermanent, std::move(ended), {}};
  }
  if (first.enough()) outcome = {};
  if (first.changed()) {
    outcome.failure = Failure::kTransient;
    (void)ingest.Discard();
  }
  if (first.ingest_failed() && !outcome.status.ok()) {
    outcome.failure = ClassifyIngest(outcome.status);
  }
  first.EndWriter();
  if (LaneGroup* group = first.group()) {
    // What other lanes had is theirs to finish, unless this ended it all.
    if (outcome.failure == Failure::kNone) {
      if (first.size() && ingest.failure().ok()) group->RunFirstLane();
    } else {
      group->Fail(outcome);
    }
    const Outcome all = group->Finish();
    if (outcome.failure == Failure::kNone) outcome = all;
    ranges_refused = group->ranges_refused();
    if (group->changed()) (void)ingest.Discard();
  }
  if (stop.stop_requested() && outcome.failure != Failure::kNone) {
    outcome.failure = Failure::kCancelled;
  }
  // Bytes of a content that is proven wrong are of no use. (A source that
  // refused before it sent any said nothing about those that are there.)
  if (first.refused() ||
      (outcome.failure == Failure::kPermanent && first.began())) {
    (void)ingest.Discard();
  }
  if (outcome.failure != Failure::kNone) return outcome;
  // What the disk could not take is not the source's fault.
  if (Status settled = ingest.Settle(); !settled.ok()) {
    return FromIngest(std::move(settled));
  }
  if (first.size()) {
    const uint64_t missing =
        ingest.begun() ? MissingBytes(ingest) : *first.size();
    if (missing > 0) {
      return {Failure::kTransient,
              base::UnavailableError("the source ended early: " +
                                     std::to_string(*first.size() - missing) +
                                     " of " + std::to_string(*first.size()) +
                                     " bytes came"),
              {}};
    }
  } else if (const uint64_t came = ingest.position();
             spec.expected_size != 0 && came != spec.expected_size) {
    (void)ingest.Discard();
    return {Failure::kPermanent,
            base::FailedPreconditionError(
                "wrong size: expected " + std::to_string(spec.expected_size) +
                " bytes, the source sent " + std::to_string(came)),
            {}};
  }
  return outcome;
}

}  // namespace

namespace {

class ReceiverImpl : public Receiver {
 public:
  ReceiverImpl(store::Ingest& ingest, const PullSpec& spec,
               std::stop_token stop)
      : spec_(spec),
        first_(ingest, spec_, on_bytes_, nullptr, stop),
        by_magic_(DecodingSink::By::kMagic, first_, MaxOutput(spec_),
                  spec_.progress),
        counting_(by_magic_, spec_, stop) {}
  ~ReceiverImpl() override { first_.EndWriter(); }

  Status OnHead(const SourceHead& head) override {
    return counting_.OnHead(head);
  }
  Status OnData(std::span<const std::byte> data) override {
    return counting_.OnData(data);
  }
  Status OnZeros(uint64_t count) override { return counting_.OnZeros(count); }
  Status Finish() override {
    BIM_RETURN_IF_ERROR(by_magic_.Finish());
    BIM_RETURN_IF_ERROR(first_.OnEnd());
    first_.EndWriter();
    return base::OkStatus();
  }
  bool refused() const override {
    return first_.refused() || by_magic_.refused();
  }

 private:
  const PullSpec spec_;
  const std::function<void()> on_bytes_ = [] {};
  FirstSink first_;
  DecodingSink by_magic_;
  CountingSink counting_;
};

}  // namespace

std::unique_ptr<Receiver> Receiver::Make(store::Ingest& ingest,
                                         const PullSpec& spec,
                                         std::stop_token stop) {
  return std::make_unique<ReceiverImpl>(ingest, spec, std::move(stop));
}

void Progress::SetEncoding(std::string encoding) {
  std::lock_guard lock(mutex_);
  encoding_ = std::move(encoding);
}

std::string Progress::encoding() const {
  std::lock_guard lock(mutex_);
  return encoding_;
}

Failure ClassifyIngest(const Status& status) {
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

PullResult Pull(Source& source, store::Ingest& ingest, const PullSpec& spec,
                const std::function<void()>& on_bytes, std::stop_token stop) {
  PullResult result;
  bool ranges_refused = false;
  result.outcome =
      Receive(source, ingest, spec, on_bytes, result, ranges_refused, stop);
  if (ranges_refused && result.outcome.failure == Failure::kTransient) {
    // One stream, then, from the begin.
    PullSpec single = spec;
    single.connections = 1;
    result.outcome =
        Receive(source, ingest, single, on_bytes, result, ranges_refused, stop);
  }
  if (result.outcome.failure != Failure::kNone) return result;
  BIM_FAILPOINT("transfer.pull.received");
  auto record = ingest.Commit(stop);
  if (!record.ok()) {
    result.outcome = FromIngest(record.status());
    return result;
  }
  result.record = *std::move(record);
  return result;
}

}  // namespace bim::transfer
