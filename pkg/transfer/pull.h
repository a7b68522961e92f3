// The one data path: source -> checks -> ingest -> commit.
//
// Pull() blocks until the image is published, the attempt failed or `stop` was
// requested. After a transient failure the same ingest may be pulled into
// again: it continues where it is. One thread and connection to begin with;
// more when the source can and it helps (LanePolicy).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>

#include "pkg/exec/rate_limiter.h"
#include "pkg/store/ingest.h"
#include "pkg/transfer/source.h"

namespace bim::transfer {

// What a transfer tells while it runs. Thread-safe.
struct Progress {
  std::atomic<uint64_t> wire_bytes{0};    // of bodies, as encoded
  std::atomic<uint64_t> reused_bytes{0};  // taken from this node instead
  std::atomic<uint64_t> encoded_size{0};  // of what the source sends, if known
  // The most that was on the disk when a try ended.
  std::atomic<uint64_t> best_bytes{0};
  void SetEncoding(std::string encoding);
  std::string encoding() const;

 private:
  mutable std::mutex mutex_;
  std::string encoding_;
};

struct PullSpec {
  uint64_t expected_size = 0;  // 0: not stated
  uint64_t max_size = 0;       // 0: no limit
  size_t connections = 1;      // at most
  // Both may be null; they outlive the pull.
  exec::RateLimiter* limiter = nullptr;
  Progress* progress = nullptr;
  // What lanes read are bytes on the wire (else the source counts them).
  bool ranges_are_wire = true;
};

struct PullResult {
  Outcome outcome;
  // When published.
  std::optional<store::ImageRecord> record;
  // Bytes that were already there when the first byte of this attempt came.
  uint64_t resumed_bytes = 0;
};

// `on_bytes` is called once, when the source begins to yield.
PullResult Pull(Source& source, store::Ingest& ingest, const PullSpec& spec,
                const std::function<void()>& on_bytes, std::stop_token stop);

// The receiving end alone, for bytes that somebody brings: checks, decodes and
// gives them to the ingest. The caller commits. One call at a time; destroyed
// before the ingest, which keeps what came.
class Receiver : public SourceSink {
 public:
  static std::unique_ptr<Receiver> Make(store::Ingest& ingest,
                                        const PullSpec& spec,
                                        std::stop_token stop);
  // All bytes came.
  virtual base::Status Finish() = 0;
  // A failure proves the content wrong.
  virtual bool refused() const = 0;
};

// Whose fault a failure of the ingest is.
Failure ClassifyIngest(const base::Status& status);

}  // namespace bim::transfer
