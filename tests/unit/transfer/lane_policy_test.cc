#include "pkg/transfer/lane_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace bim::transfer {
namespace {

constexpr double kTick = 0.025;

// A network whose speed depends on how many lanes there are.
class Network {
 public:
  explicit Network(size_t max) : policy_(max) {}

  // Goes on for so long; `rate`: bytes a second with so many lanes.
  template <typename Rate>
  size_t Run(double seconds, Rate rate, double busy = 0.1) {
    for (double at = 0; at < seconds; at += kTick) {
      lanes_ = policy_.Next(
          {lanes_, static_cast<uint64_t>(rate(lanes_) * kTick), kTick, busy});
      EXPECT_GE(lanes_, 1u);
      EXPECT_LE(lanes_, policy_.max());
      most_ = std::max(most_, lanes_);
    }
    return lanes_;
  }
  void Object() {
    policy_.Objected(lanes_);
    lanes_ = lanes_ > 1 ? lanes_ - 1 : 1;
  }
  size_t most() const { return most_; }
  void ForgetMost() { most_ = 0; }

 private:
  LanePolicy policy_;
  size_t lanes_ = 1;
  size_t most_ = 0;
};

// Each connection has its own limit.
double PerLane(size_t lanes) { return 10e6 * static_cast<double>(lanes); }
// All of them share one.
double Shared(size_t) { return 10e6; }

TEST(LanePolicyTest, AllWhenEachConnectionIsLimited) {
  for (const size_t max : {2, 3, 8}) {
    Network network(max);
    EXPECT_EQ(network.Run(0.05, PerLane), 1u);
    EXPECT_EQ(network.Run(0.15, PerLane), max);
    EXPECT_EQ(network.Run(30, PerLane), max);
  }
}

TEST(LanePolicyTest, OneWhenThatIsAllThereMayBe) {
  for (const size_t max : {0, 1}) {
    LanePolicy policy(max);
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(policy.Next({1, 100, kTick, 0}), 1u);
    }
  }
}

TEST(LanePolicyTest, BackWhenNotFasterAndAgainAfterAPause) {
  Network network(8);
  EXPECT_EQ(network.Run(0.2, Shared), 8u);
  EXPECT_EQ(network.Run(0.8, Shared), 1u);
  network.ForgetMost();
  // Not before ten seconds are over, and then once.
  network.Run(8, Shared);
  EXPECT_EQ(network.most(), 1u);
  network.Run(3, Shared);
  EXPECT_EQ(network.most(), 8u);
  EXPECT_EQ(network.Run(1, Shared), 1u);
  // By then each one helps.
  EXPECT_EQ(network.Run(12, PerLane), 8u);
  EXPECT_EQ(network.Run(20, PerLane), 8u);
}

TEST(LanePolicyTest, ALittleFasterIsNotFaster) {
  Network network(8);
  network.Run(1.0, [](size_t lanes) { return lanes > 1 ? 11e6 : 10e6; });
  EXPECT_EQ(network.Run(1, Shared), 1u);
  Network other(8);
  EXPECT_EQ(other.Run(2, [](size_t lanes) { return lanes > 1 ? 13e6 : 10e6; }),
            8u);
}

TEST(LanePolicyTest, OneWhenOurSideIsTheSlowerOne) {
  Network network(8);
  EXPECT_EQ(network.Run(20, PerLane, 0.8), 1u);
  EXPECT_EQ(network.most(), 1u);
  EXPECT_EQ(network.Run(1, PerLane, 0.2), 8u);
}

TEST(LanePolicyTest, NoMoreThanOurSideTakes) {
  Network network(8);
  EXPECT_EQ(network.Run(0.2, PerLane), 8u);
  // A quarter more than the 45 MB/s that it takes, of 10 MB/s each.
  const auto ours = [](size_t) { return 45e6; };
  EXPECT_EQ(network.Run(1, ours, 0.9), 6u);
  EXPECT_EQ(network.Run(5, ours, 0.9), 6u);
  // The disk becomes slower, and all is well again.
  EXPECT_EQ(network.Run(
                1, [](size_t) { return 9e6; }, 0.9),
            2u);
  EXPECT_EQ(network.Run(1, PerLane), 8u);
  // Not worth more than one to begin with.
  Network slow(8);
  EXPECT_EQ(slow.Run(0.2, PerLane), 8u);
  EXPECT_EQ(slow.Run(
                1, [](size_t) { return 5e6; }, 0.9),
            1u);
}

TEST(LanePolicyTest, NothingThatComesSaysNothing) {
  Network network(8);
  EXPECT_EQ(network.Run(5, [](size_t) { return 0.0; }), 1u);
  EXPECT_EQ(network.most(), 1u);
  EXPECT_EQ(network.Run(1, PerLane), 8u);
}

TEST(LanePolicyTest, AnObjectionIsHeededForAWhile) {
  Network network(8);
  EXPECT_EQ(network.Run(1, PerLane), 8u);
  network.Object();
  EXPECT_EQ(network.Run(kTick, PerLane), 7u);
  network.Object();
  network.ForgetMost();
  EXPECT_EQ(network.Run(29, PerLane), 6u);
  EXPECT_EQ(network.most(), 6u);
  EXPECT_EQ(network.Run(3, PerLane), 8u);
}

TEST(LanePolicyTest, ObjectionsLeaveOne) {
  LanePolicy policy(4);
  for (const size_t lanes : {0, 1, 5, 1, 0}) {
    policy.Objected(lanes);
    const size_t next = policy.Next({1, 1000, kTick, 0});
    EXPECT_EQ(next, 1u);  // never more than there were to be
  }
}

TEST(LanePolicyTest, SamplesOfNoTimeAreNone) {
  LanePolicy policy(8);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(policy.Next({1, 1'000'000, 0, 0}), 1u);
    EXPECT_EQ(policy.Next({1, 1'000'000, -1, 0}), 1u);
  }
}

TEST(LanePolicyTest, WithinBoundsWhateverHappens) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const size_t max = 1 + random() % 8;
    LanePolicy policy(max);
    size_t lanes = 1;
    for (int i = 0; i < 400; ++i) {
      if (random() % 40 == 0) policy.Objected(random() % 12);
      lanes = policy.Next({random() % 12, random() % 3 * random(),
                           random() % 2 == 0 ? kTick : 3.0,
                           static_cast<double>(random() % 11) / 10});
      ASSERT_GE(lanes, 1u);
      ASSERT_LE(lanes, max);
    }
  }
}

}  // namespace
}  // namespace bim::transfer
