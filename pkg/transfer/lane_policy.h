// How many connections a transfer should use: one as long as that is enough,
// more when the network is what it waits for and more make it faster, but not
// more than it takes to keep our side at work: what is on its way over each is
// lost when the transfer breaks off. Pure: samples in, a number out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bim::transfer {

class LanePolicy {
 public:
  explicit LanePolicy(size_t max) : max_(max) {}

  // What was seen since the last sample.
  struct Sample {
    size_t lanes = 0;    // at work
    uint64_t bytes = 0;  // that all of them gave
    double seconds = 0;
    // The share of their time that lanes spent on our side (writing, hashing,
    // waiting for either, or held back by a limit), 0 to 1.
    double busy = 0;
  };
  // How many there should be from now on, 1 to max: one at first; all of them
  // once the network is seen to be the slower side. When that does not make the
  // whole faster it is taken back, and tried again after a while.
  size_t Next(const Sample& sample);
  // The source refused one of `lanes` connections: fewer, for a while.
  void Objected(size_t lanes);
  size_t max() const { return max_; }

 private:
  // How long is looked before more are tried, before those are judged, and how
  // long they have until they count: servers give bytes in bursts.
  static constexpr double kLook = 0.1;
  static constexpr double kJudge = 0.4;
  static constexpr double kSettle = 0.1;
  // Seconds until more are tried again.
  static constexpr double kPauseNotFaster = 10;
  static constexpr double kPauseObjected = 30;
  // Our side is the slower one.
  static constexpr double kBusy = 0.5;
  static constexpr double kFaster = 1.2;
  // How much more the connections should be able to give than our side takes.
  static constexpr double kSpare = 1.25;

  void Change(size_t wanted);
  // How many of those at work our side needs at this rate.
  size_t Enough(double rate) const;

  const size_t max_;
  size_t wanted_ = 1;
  size_t before_ = 0;       // lanes before the step that is on trial; 0: none
  double rate_before_ = 0;  // bytes a second then
  double lane_rate_ = 0;    // of one, when the network was last the slower side
  double pause_ = 0;
  double settle_ = 0;
  // Seen since the last decision.
  double bytes_ = 0;
  double seconds_ = 0;
  double busy_ = 0;  // seconds
};

}  // namespace bim::transfer
