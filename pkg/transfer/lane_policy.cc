#include "pkg/transfer/lane_policy.h"

#include <algorithm>
#include <cmath>

namespace bim::transfer {

void LanePolicy::Change(size_t wanted) {
  if (wanted != wanted_) settle_ = kSettle;
  wanted_ = wanted;
  bytes_ = seconds_ = busy_ = 0;
}

size_t LanePolicy::Enough(double rate) const {
  if (lane_rate_ <= 0) return wanted_;
  const double lanes = std::ceil(rate * kSpare / lane_rate_);
  return lanes < static_cast<double>(wanted_)
             ? std::max<size_t>(1, static_cast<size_t>(lanes))
             : wanted_;
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
    const bool keep = ours || rate > rate_before_ * kFaster;
    if (!keep) pause_ = kPauseNotFaster;
    Change(ours ? Enough(rate) : keep ? wanted_ : before_);
    before_ = 0;
    return wanted_;
  }
  if (ours) {
    Change(Enough(rate));
    return wanted_;
  }
  if (bytes_ > 0) {
    // Surplus ones may still be at work.
    lane_rate_ = rate / static_cast<double>(std::max(wanted_, sample.lanes));
  }
  if (pause_ > 0 || wanted_ >= max_ || bytes_ == 0) {
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
