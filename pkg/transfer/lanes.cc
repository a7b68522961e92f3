#include "pkg/transfer/lanes.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "pkg/base/log.h"

namespace bim::transfer {
namespace {

using base::Code;
using base::Status;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

// A lane's first ranges, and bounds for the later ones, which take a lane about
// a second each.
constexpr uint64_t kMinSegment = 8 << 20;
constexpr uint64_t kMaxSegment = 64 << 20;
// Less than this is not shared with another lane.
constexpr uint64_t kMinCut = 2 << 20;
// The monitor looks often at first, when lanes are added.
constexpr milliseconds kFastTick{25};
constexpr milliseconds kSlowTick{250};
constexpr milliseconds kFastFor{1'000};
// How many slow ticks a lane's rate is averaged over.
constexpr size_t kWindow = 8;

}  // namespace

// Takes the bytes of one ranged read.
class LaneGroup::Sink : public SourceSink {
 public:
  Sink(LaneGroup& group, size_t lane, RangeQueue::Claim* claim,
       store::IngestWriter& writer, std::stop_token stop)
      : group_(group),
        lane_(lane),
        claim_(claim),
        begin_(writer.position()),
        writer_(writer),
        stop_(stop) {}

  Status OnHead(const SourceHead& head) override {
    if (head.validator != group_.ingest_.validator() ||
        (head.size && *head.size != group_.ingest_.total_bytes())) {
      changed_ = true;
      return base::AbortedError("the source's file changed meanwhile");
    }
    if (head.offset == begin_) return base::OkStatus();
    group_.ranges_refused_ = true;
    return base::UnavailableError("the source does not give ranges");
  }
  Status OnData(std::span<const std::byte> data) override {
    const auto before = Clock::now();
    const uint64_t take = group_.queue_.Advance(claim_, data.size());
    Status status = Give(take, [&] {
      return writer_.Append(data.first(static_cast<size_t>(take)), stop_);
    });
    group_.Count(lane_, take, Clock::now() - before);
    return take < data.size() && status.ok() ? Enough() : status;
  }
  Status OnZeros(uint64_t count) override {
    const auto before = Clock::now();
    const uint64_t take = group_.queue_.Advance(claim_, count);
    Status status = Give(0, [&] { return writer_.AppendZeros(take, stop_); });
    group_.Count(lane_, take, Clock::now() - before);
    return take < count && status.ok() ? Enough() : status;
  }

  bool changed() const { return changed_; }
  // The range was cut: all of it came.
  bool enough() const { return enough_; }
  const std::optional<Status>& ingest_failure() const { return failure_; }

 private:
  template <typename Append>
  Status Give(uint64_t bytes, Append append) {
    exec::RateLimiter* limiter = group_.spec_.limiter;
    if (limiter != nullptr && !limiter->Wait(bytes, stop_)) {
      return base::CancelledError("stopped");
    }
    if (group_.spec_.progress != nullptr && group_.spec_.ranges_are_wire) {
      group_.spec_.progress->wire_bytes += bytes;
    }
    Status status = append();
    if (!status.ok()) failure_ = status;
    return status;
  }
  Status Enough() {
    enough_ = true;
    return base::OutOfRangeError("enough");
  }

  LaneGroup& group_;
  const size_t lane_;
  RangeQueue::Claim* const claim_;
  const uint64_t begin_;
  store::IngestWriter& writer_;
  const std::stop_token stop_;
  bool changed_ = false;
  bool enough_ = false;
  std::optional<Status> failure_;
};

LaneGroup::LaneGroup(store::Ingest& ingest, RangeQueue& queue,
                     LaneSources& sources, const PullSpec& spec,
                     std::stop_token stop)
    : ingest_(ingest),
      queue_(queue),
      sources_(sources),
      spec_(spec),
      stop_(stop),
      policy_(std::max<size_t>(1, spec.connections)) {
  for (size_t i = 0; i < policy_.max(); ++i) {
    slots_.push_back(std::make_unique<Slot>());
  }
  slots_[0]->running = true;
}

LaneGroup::~LaneGroup() { (void)Finish(); }

bool LaneGroup::Ended() const {
  return failure_.has_value() || stop_.stop_requested();
}

void LaneGroup::Fail(Outcome outcome) {
  std::lock_guard lock(mutex_);
  if (!failure_) failure_ = std::move(outcome);
  for (auto& slot : slots_) slot->stop.request_stop();
  wake_.notify_all();
}

void LaneGroup::Count(size_t lane, uint64_t bytes, nanoseconds busy) {
  Slot& slot = *slots_[lane];
  slot.bytes += bytes;
  slot.busy_ns += static_cast<uint64_t>(busy.count());
}

uint64_t LaneGroup::MinCut() const {
  return std::max(kMinCut, ingest_.chunk_size());
}

uint64_t LaneGroup::SegmentBytes() const {
  const uint64_t by_rate = static_cast<uint64_t>(lane_rate_.load());
  const uint64_t segment = std::clamp(by_rate, kMinSegment, kMaxSegment);
  // So that the last ones end together.
  const uint64_t share = queue_.remaining() / (2 * policy_.max());
  return std::max(MinCut(), std::min(segment, share));
}

void LaneGroup::StartMonitor() {
  if (policy_.max() < 2 || monitor_.joinable()) return;
  monitor_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "bim-lanes");
    Monitor();
  });
}

void LaneGroup::RunFirstLane() {
  RunLane(0);
  std::unique_lock lock(mutex_);
  // Ranges that others give back are for those that still work, or for us.
  while (!failure_ && !stop_.stop_requested() && !queue_.done()) {
    if (active_ == 0) {
      if (last_failure_ && gave_up_) {
        failure_ = last_failure_;
        break;
      }
      last_failure_.reset();
      ++active_;
      slots_[0]->running = true;
      lock.unlock();
      RunLane(0);
      lock.lock();
      continue;
    }
    wake_.wait_for(lock, kSlowTick);
  }
}

Outcome LaneGroup::Finish() {
  {
    std::lock_guard lock(mutex_);
    finished_ = true;
    if (Ended()) {
      for (auto& slot : slots_) slot->stop.request_stop();
    }
    wake_.notify_all();
  }
  if (monitor_.joinable()) monitor_.join();
  for (auto& slot : slots_) {
    if (slot->thread.joinable()) slot->thread.join();
  }
  std::lock_guard lock(mutex_);
  if (stop_.stop_requested()) {
    return {Failure::kCancelled, base::CancelledError("stopped"), {}};
  }
  return failure_.value_or(Outcome{});
}

void LaneGroup::RunLane(size_t lane) {
  Slot& slot = *slots_[lane];
  while (true) {
    std::stop_source stop;
    {
      std::lock_guard lock(mutex_);
      if (Ended() || (lane > 0 && active_ > wanted_)) break;
      slot.stop = stop;
      slot.abandoned = false;
    }
    RangeQueue::Claim* claim = queue_.Take(SegmentBytes(), MinCut());
    if (claim == nullptr || !ReadOne(lane, claim, stop)) break;
  }
  sources_.Close(lane);
  std::lock_guard lock(mutex_);
  slot.running = false;
  --active_;
  wake_.notify_all();
}

bool LaneGroup::ReadOne(size_t lane, RangeQueue::Claim* claim,
                        std::stop_source& stop) {
  Slot& slot = *slots_[lane];
  const std::stop_token lane_stop = stop.get_token();
  // Either stop ends the read.
  std::stop_callback both(stop_, [&stop] { stop.request_stop(); });
  const io::Extent range = queue_.RangeOf(claim);
  Source* source = sources_.Open(lane);
  if (source == nullptr) {
    queue_.Return(claim, range.begin);
    std::lock_guard lock(mutex_);
    gave_up_ = lane == 0 && active_ <= 1;
    last_failure_ = Outcome{
        Failure::kTransient, base::UnavailableError("no source is left"), {}};
    return false;
  }
  auto writer = ingest_.Write(range.begin, range.end);
  Sink sink(*this, lane, claim, *writer, lane_stop);
  const auto before = Clock::now();
  Outcome outcome = source->Read({range.begin, range.end}, ingest_.validator(),
                                 sink, lane_stop);
  uint64_t position = writer->position();
  writer.reset();
  if (ingest_.reference()) {
    // Of a chunk in the middle nothing is kept.
    const io::Extent now = queue_.RangeOf(claim);
    if (position < now.end) position -= position % ingest_.chunk_size();
  }
  const uint64_t end = queue_.RangeOf(claim).end;
  queue_.Return(claim, position);
  const uint64_t bytes = position - range.begin;
  // What the disk could not take is not the source's fault.
  if (Status failed = ingest_.failure(); !failed.ok()) {
    const Failure failure = ClassifyIngest(failed);
    Fail({failure, std::move(failed), {}});
    return false;
  }
  if (sink.enough() || (outcome.failure == Failure::kNone && position == end)) {
    const double seconds =
        std::chrono::duration<double>(Clock::now() - before).count();
    if (seconds > 0) lane_rate_ = static_cast<double>(bytes) / seconds;
    sources_.OnSuccess(lane, bytes, seconds);
    std::lock_guard lock(mutex_);
    last_failure_.reset();
    return true;
  }
  if (outcome.failure == Failure::kNone) {
    outcome = {Failure::kTransient,
               base::UnavailableError("the source ended early"),
               {}};
  }
  if (const auto& failed = sink.ingest_failure()) {
    outcome.failure = ClassifyIngest(*failed);
    outcome.status = *failed;
    // A chunk that differs is the source's fault, not that of all of them.
    if (failed->code() == Code::kDataLoss) {
      outcome.failure = Failure::kTransient;
    } else if (outcome.failure != Failure::kCancelled) {
      Fail(std::move(outcome));
      return false;
    }
  }
  if (sink.changed()) {
    changed_ = true;
    Fail({Failure::kTransient,
          base::AbortedError("the source's file changed while it was read"),
          {}});
    return false;
  }
  if (stop_.stop_requested()) return false;
  // Another try, as one stream, may do.
  if (outcome.failure == Failure::kPermanent && !lane_stop.stop_requested()) {
    ranges_refused_ = true;
  }
  if (ranges_refused_) outcome.failure = Failure::kTransient;
  bool others = false;
  {
    std::lock_guard lock(mutex_);
    if (failure_) return false;
    if (slot.abandoned) {
      outcome = {Failure::kTransient,
                 base::DeadlineExceededError("slower than the others"),
                 {}};
    }
    others = active_ > 1;
  }
  switch (sources_.OnFailure(lane, outcome, others, lane_stop)) {
    case LaneSources::Next::kAgain:
      return true;
    case LaneSources::Next::kEnd: {
      std::lock_guard lock(mutex_);
      gave_up_ = lane == 0 && !others;
      last_failure_ = std::move(outcome);
      policy_.Objected(active_);
      wanted_ = std::min(wanted_, std::max<size_t>(1, active_ - 1));
      return false;
    }
    case LaneSources::Next::kFail:
      Fail(std::move(outcome));
      return false;
  }
  return false;
}

void LaneGroup::AddLanes(size_t wanted) {
  // Locked.
  wanted_ = wanted;
  for (size_t i = 1; i < slots_.size() && active_ < wanted_; ++i) {
    Slot& slot = *slots_[i];
    if (slot.running) continue;
    if (slot.thread.joinable()) slot.thread.join();  // it has ended
    slot.running = true;
    slot.window.clear();
    ++active_;
    slot.thread = std::thread([this, i] {
      pthread_setname_np(pthread_self(), "bim-lane");
      RunLane(i);
    });
  }
}

void LaneGroup::EndSlow() {
  // Locked.
  std::vector<double> rates;
  const double seconds =
      std::chrono::duration<double>(kSlowTick).count() * kWindow;
  for (auto& slot : slots_) {
    const bool full = slot->running && slot->window.size() > kWindow;
    rates.push_back(
        full ? static_cast<double>(slot->window.back() - slot->window.front()) /
                   seconds
             : -1.0);
  }
  if (const auto lane = sources_.TooSlow(rates)) {
    slots_[*lane]->abandoned = true;
    slots_[*lane]->window.clear();
    slots_[*lane]->stop.request_stop();
  }
}

void LaneGroup::Monitor() {
  const auto began = Clock::now();
  auto last = began;
  std::vector<uint64_t> last_busy(slots_.size(), 0);
  std::unique_lock lock(mutex_);
  while (!finished_ && !Ended()) {
    const bool fast = Clock::now() - began < kFastFor;
    wake_.wait_for(lock, fast ? kFastTick : kSlowTick);
    if (finished_ || Ended()) return;
    const auto now = Clock::now();
    LanePolicy::Sample sample;
    sample.seconds = std::chrono::duration<double>(now - last).count();
    // Woken early.
    if (now - last < kFastTick / 2) continue;
    last = now;
    sample.lanes = active_;
    double busy = 0;
    for (size_t i = 0; i < slots_.size(); ++i) {
      Slot& slot = *slots_[i];
      const uint64_t bytes = slot.bytes;
      sample.bytes += bytes - slot.last_bytes;
      slot.last_bytes = bytes;
      const uint64_t busy_ns = slot.busy_ns;
      busy += static_cast<double>(busy_ns - last_busy[i]) / 1e9;
      last_busy[i] = busy_ns;
      if (!fast && slot.running) {
        slot.window.push_back(bytes);
        if (slot.window.size() > kWindow + 1) {
          slot.window.erase(slot.window.begin());
        }
      }
    }
    sample.busy = busy / (sample.seconds *
                          static_cast<double>(std::max<size_t>(1, active_)));
    // Held back on purpose: more connections change nothing.
    if (spec_.limiter != nullptr && spec_.limiter->rate() > 0) sample.busy = 1;
    const size_t wanted = ranges_refused_ ? 1 : policy_.Next(sample);
    if (queue_.remaining() >= 2 * MinCut()) AddLanes(wanted);
    if (!fast) EndSlow();
  }
}

}  // namespace bim::transfer
