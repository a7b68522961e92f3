// The one data path: source -> checks -> ingest -> commit.
//
// Pull() blocks until the image is published, the attempt failed or `stop` was
// requested. After a transient failure the same ingest may be pulled into
// again: it continues where it is.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>

#include "pkg/store/ingest.h"
#include "pkg/transfer/source.h"

namespace bim::transfer {

struct PullSpec {
  uint64_t expected_size = 0;  // 0: not stated
  uint64_t max_size = 0;       // 0: no limit
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

}  // namespace bim::transfer
