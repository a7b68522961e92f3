#include "pkg/http/pace.h"

#include <gtest/gtest.h>

namespace bim::http {
namespace {

using namespace std::chrono_literals;
using Verdict = Pace::Verdict;

constexpr Pace::Clock::time_point kStart{1000s};

TEST(Pace, StallsWithoutABytes) {
  Pace pace({.stall = 10s});
  pace.Await(kStart);
  EXPECT_EQ(pace.NextLook(), kStart + 10s);
  EXPECT_EQ(pace.Look(kStart + 9s, 0), Verdict::kFine);
  EXPECT_EQ(pace.Look(kStart + 9s, 1), Verdict::kFine);
  EXPECT_EQ(pace.NextLook(), kStart + 19s);
  EXPECT_EQ(pace.Look(kStart + 18s, 1), Verdict::kFine);
  EXPECT_EQ(pace.Look(kStart + 19s, 1), Verdict::kStalled);
}

TEST(Pace, ClockStopsWhenNotAwaited) {
  Pace pace({.stall = 10s, .min_rate = 10, .window = 20s});
  pace.Await(kStart);
  pace.Pause(kStart + 6s);
  pace.Pause(kStart + 50s);
  EXPECT_EQ(pace.Look(kStart + 1000s, 0), Verdict::kFine);
  pace.Await(kStart + 1000s);
  pace.Await(kStart + 1001s);
  EXPECT_EQ(pace.NextLook(), kStart + 1004s);
  EXPECT_EQ(pace.Look(kStart + 1003s, 5), Verdict::kFine);
  EXPECT_EQ(pace.NextLook(), kStart + 1013s);
  // 20 s of awaiting are over.
  EXPECT_EQ(pace.Look(kStart + 1012s, 100), Verdict::kFine);
  EXPECT_EQ(pace.NextLook(), kStart + 1014s);
  EXPECT_EQ(pace.Look(kStart + 1014s, 199), Verdict::kDribbling);
  EXPECT_EQ(pace.rate(), 9u);
}

TEST(Pace, OneWindowAfterAnother) {
  Pace pace({.stall = 100s, .min_rate = 10, .window = 10s});
  pace.Await(kStart);
  EXPECT_EQ(pace.NextLook(), kStart + 10s);
  EXPECT_EQ(pace.Look(kStart + 10s, 1000), Verdict::kFine);
  EXPECT_EQ(pace.rate(), 100u);
  // What came before does not help.
  EXPECT_EQ(pace.Look(kStart + 20s, 1099), Verdict::kDribbling);
}

TEST(Pace, AnyRateIsEnoughWhenNoneIsAsked) {
  Pace pace({.stall = 100s, .window = 10s});
  pace.Await(kStart);
  EXPECT_EQ(pace.NextLook(), kStart + 100s);
  EXPECT_EQ(pace.Look(kStart + 99s, 1), Verdict::kFine);
}

TEST(Pace, TotalsNeverShrink) {
  Pace pace({.stall = 10s, .min_rate = 1, .window = 10s});
  pace.Await(kStart);
  EXPECT_EQ(pace.Look(kStart + 1s, 100), Verdict::kFine);
  EXPECT_EQ(pace.Look(kStart + 10s, 50), Verdict::kFine);
  EXPECT_EQ(pace.Look(kStart + 11s, 50), Verdict::kStalled);
}

}  // namespace
}  // namespace bim::http
