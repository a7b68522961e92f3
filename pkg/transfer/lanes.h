// Several connections ("lanes") that fill one ingest: each takes a range, reads
// it from its source into a writer, and takes the next. Lanes are added while
// the network is what the transfer waits for (LanePolicy).
//
// Thread-safety: as said. Lane 0 runs on the caller's thread, the others and
// the monitor on threads of their own, all joined by Finish().
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "pkg/store/ingest.h"
#include "pkg/transfer/lane_policy.h"
#include "pkg/transfer/pull.h"
#include "pkg/transfer/range_queue.h"
#include "pkg/transfer/source.h"

namespace bim::transfer {

// Where lanes get their sources from.
class LaneSources {
 public:
  virtual ~LaneSources() = default;
  // The source of that lane's next read, which stays alive until the lane's
  // next Open or Close. Null: none for it now. On the lane's thread.
  virtual Source* Open(size_t lane) = 0;
  virtual void Close(size_t lane) = 0;
  // A read of the lane failed. `others`: more lanes are at work.
  enum class Next {
    kAgain,  // open a source again
    kEnd,    // this lane ends; the failure is the transfer's if it was the last
    kFail,   // the transfer failed
  };
  virtual Next OnFailure(size_t lane, const Outcome& outcome, bool others,
                         std::stop_token stop) = 0;
  virtual void OnSuccess(size_t lane, uint64_t bytes, double seconds) = 0;
  // Bytes a second of each lane over the last seconds, negative: not at work
  // for all of them. A lane whose source should be given up for another one.
  virtual std::optional<size_t> TooSlow(const std::vector<double>& rates) = 0;
};

class LaneGroup {
 public:
  // All references outlive the group. `queue` has what is missing.
  LaneGroup(store::Ingest& ingest, RangeQueue& queue, LaneSources& sources,
            const PullSpec& spec, std::stop_token stop);
  ~LaneGroup();
  LaneGroup(const LaneGroup&) = delete;
  LaneGroup& operator=(const LaneGroup&) = delete;

  // Lane 0 began by itself; from now on others may be added.
  void StartMonitor();
  // Works as lane 0 until nothing is left to read, or the transfer failed.
  void RunFirstLane();
  // Joins all. kNone: everything was read.
  Outcome Finish();
  // Ends all lanes with this failure.
  void Fail(Outcome outcome);
  // The source's content is another one than that in work.
  bool changed() const { return changed_; }
  // It announced ranges, and does not give them.
  bool ranges_refused() const { return ranges_refused_; }

  // Of a sink: `bytes` were given, `busy` was spent on our side.
  void Count(size_t lane, uint64_t bytes, std::chrono::nanoseconds busy);
  // A new range is given out in pieces of about this size.
  uint64_t SegmentBytes() const;
  uint64_t MinCut() const;

 private:
  class Sink;
  struct Slot {
    std::thread thread;
    bool running = false;
    std::stop_source stop;
    bool abandoned = false;
    std::atomic<uint64_t> bytes{0};
    std::atomic<uint64_t> busy_ns{0};
    uint64_t last_bytes = 0;  // of the monitor
    std::vector<uint64_t> window;
  };

  void RunLane(size_t lane);
  // One range. False: the lane ends.
  bool ReadOne(size_t lane, RangeQueue::Claim* claim, std::stop_source& stop);
  void Monitor();
  void AddLanes(size_t wanted);
  void EndSlow();
  bool Ended() const;  // failed or stopped

  store::Ingest& ingest_;
  RangeQueue& queue_;
  LaneSources& sources_;
  const PullSpec& spec_;
  const std::stop_token stop_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  LanePolicy policy_;
  size_t wanted_ = 1;
  size_t active_ = 1;  // lane 0
  std::vector<std::unique_ptr<Slot>> slots_;
  bool finished_ = false;
  std::optional<Outcome> failure_;
  // Of a lane that ended; nothing succeeded since.
  std::optional<Outcome> last_failure_;
  bool gave_up_ = false;  // it was lane 0, with no other one at work
  std::atomic<bool> changed_{false};
  std::atomic<bool> ranges_refused_{false};
  std::atomic<double> lane_rate_{0};  // bytes a second, of one lane
  std::thread monitor_;
};

}  // namespace bim::transfer
