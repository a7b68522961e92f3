// When is a failed attempt tried again? Pure: state and outcome in, decision
// out. Two levels: quick tries within one attempt (the image stays
// "in-progress"), then "failed" and a backoff window.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "pkg/transfer/options.h"
#include "pkg/transfer/source.h"

namespace bim::transfer {

struct RetryState {
  int tries = 0;          // quick ones since the last progress
  uint32_t attempts = 0;  // failed ones since the last success
  friend bool operator==(const RetryState&, const RetryState&) = default;
};

struct BackoffOptions {
  std::chrono::milliseconds first{60'000};
  std::chrono::milliseconds max{300'000};
};

struct RetryDecision {
  enum class Kind {
    kSoon,   // again after `delay`, as part of this attempt
    kLater,  // the attempt failed; a new one after `delay`
    kNever,  // the same would fail again
  };
  Kind kind = Kind::kNever;
  std::chrono::milliseconds delay{0};
  RetryState next;
};

// `progress`: bytes arrived since the last try. `jitter` in [0, 1) spreads the
// delay over its second half. A Retry-After is honoured: no try comes sooner,
// and one that is longer than the longest quick delay ends the attempt.
// kCancelled is kNever: who cancelled knows what comes next.
RetryDecision Decide(RetryState state, Failure failure,
                     std::optional<std::chrono::seconds> retry_after,
                     bool progress, double jitter, const RetryOptions& retry,
                     const BackoffOptions& backoff);

}  // namespace bim::transfer
