#include "pkg/transfer/lane_policy.h"

#include <algorithm>

namespace bim::transfer {

void LanePolicy::Change(size_t wanted) {
  if (wanted != wanted_) settle_ = kSettle;
  wanted_ = wanted;
  bytes_ = seconds_ = busy_ = 0;
}

size_t LanePolicy::Next(const Sample& sample) {
  if (sample.seconds <= 0) return wanted_;
  pause_ = std::max(0.0, pause_ - sample.seconds);
  if (settle_ > 0) {
    settle_ -= sample.seconds;
    return wanted_;
  }
  bytes_ += static_cast<double>(sample.bytes);
  seconds_ += sample.seconds;
  busy_ += sample.busy * sample.seconds;
  if (seconds_ < (before_ != 0 ? kJudge : kLook)) return wanted_;
  const double rate = bytes_ / seconds_;
  const bool ours = busy_ / seconds_ > kBusy;
  if (before_ != 0) {
    // With our side the slower one now, the step was worth it, or does no harm.
    const bool keep = ours || rate > rate_before_ * kFaster;
    if (!keep) pause_ = kPauseNotFaster;
    Change(keep ? wanted_ : before_);
    before_ = 0;
    return wanted_;
  }
  if (ours || pause_ > 0 || wanted_ >= max_ || bytes_ == 0) {
    Change(wanted_);
    return wanted_;
  }
  before_ = wanted_;
  rate_before_ = rate;
  Change(max_);
  return wanted_;
}

void LanePolicy::Objected(size_t lanes) {
  Change(std::clamp<size_t>(lanes > 0 ? lanes - 1 : 0, 1, wanted_));
  before_ = 0;
  pause_ = kPauseObjected;
}

}  // namespace bim::transfer
