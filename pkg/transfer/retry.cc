#include "pkg/transfer/retry.h"

#include <algorithm>

namespace bim::transfer {
namespace {

using std::chrono::milliseconds;

// first * 2^doublings, at most max.
milliseconds Exponential(milliseconds first, milliseconds max,
                         uint32_t doublings) {
  milliseconds delay = std::min(first, max);
  for (uint32_t i = 0; i < doublings && delay < max; ++i) {
    delay = std::min(delay * 2, max);
  }
  return delay;
}

milliseconds Spread(milliseconds delay, double jitter) {
  const double share = 0.5 + 0.5 * std::clamp(jitter, 0.0, 1.0);
  return milliseconds(static_cast<milliseconds::rep>(
      static_cast<double>(delay.count()) * share));
}

}  // namespace

RetryDecision Decide(RetryState state, Failure failure,
                     std::optional<std::chrono::seconds> retry_after,
                     bool progress, double jitter, const RetryOptions& retry,
                     const BackoffOptions& backoff) {
  using Kind = RetryDecision::Kind;
  if (failure == Failure::kNone) return {Kind::kNever, {}, RetryState{}};
  if (failure == Failure::kCancelled) return {Kind::kNever, {}, state};
  if (failure == Failure::kPermanent) {
    return {Kind::kNever, {}, {0, state.attempts + 1}};
  }
  const milliseconds wanted =
      retry_after ? milliseconds(*retry_after) : milliseconds(0);
  const int tries = progress ? 1 : state.tries + 1;
  // A full or failing disk does not mend within seconds, nor does wrong
  // content.
  if (failure == Failure::kTransient && tries < retry.max_tries &&
      wanted <= retry.max) {
    const milliseconds delay = Spread(
        Exponential(retry.first, retry.max, static_cast<uint32_t>(tries - 1)),
        jitter);
    return {Kind::kSoon, std::max(delay, wanted), {tries, state.attempts}};
  }
  // The window itself is not spread: it is what operators are told.
  const milliseconds window =
      Exponential(backoff.first, backoff.max, state.attempts);
  return {Kind::kLater, std::max(window, wanted), {0, state.attempts + 1}};
}

}  // namespace bim::transfer
