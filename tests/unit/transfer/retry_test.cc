#include "pkg/transfer/retry.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace bim::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = RetryDecision::Kind;

const RetryOptions kRetry;      // 5 tries, 1 s to 30 s
const BackoffOptions kBackoff;  // 60 s to 300 s

// Doubling, spelled out.
milliseconds Doubled(milliseconds first, milliseconds max, uint32_t times) {
  milliseconds delay = first;
  while (times-- > 0 && delay < max) delay *= 2;
  return std::min(delay, max);
}

TEST(RetryTest, EveryCombination) {
  for (int max_tries : {1, 2, 5}) {
    RetryOptions retry = kRetry;
    retry.max_tries = max_tries;
    for (Failure failure :
         {Failure::kNone, Failure::kTransient, Failure::kPermanent,
          Failure::kDisk, Failure::kCancelled}) {
      for (int tries = 0; tries <= 6; ++tries) {
        for (uint32_t attempts : {0u, 1u, 2u, 3u, 4u, 40u, 1'000'000u}) {
          for (int after : {-1, 0, 1, 10, 30, 31, 100, 86'400}) {
            for (bool progress : {false, true}) {
              for (double jitter : {0.0, 0.25, 0.999}) {
                const RetryState state{tries, attempts};
                const auto wait = after < 0 ? std::optional<seconds>()
                                            : std::optional(seconds(after));
                const RetryDecision got = Decide(state, failure, wait, progress,
                                                 jitter, retry, kBackoff);
                SCOPED_TRACE(::testing::Message()
                             << max_tries << " " << static_cast<int>(failure)
                             << " " << tries << " " << attempts << " " << after
                             << " " << progress << " " << jitter);
                if (failure == Failure::kNone) {
                  ASSERT_EQ(got.kind, Kind::kNever);
                  ASSERT_EQ(got.next, RetryState{});
                  continue;
                }
                if (failure == Failure::kCancelled) {
                  ASSERT_EQ(got.kind, Kind::kNever);
                  ASSERT_EQ(got.next, state);
                  continue;
                }
                if (failure == Failure::kPermanent) {
                  ASSERT_EQ(got.kind, Kind::kNever);
                  ASSERT_EQ(got.next, (RetryState{0, attempts + 1}));
                  continue;
                }
                // No try comes sooner than the server asked for.
                ASSERT_GE(got.delay, wait.value_or(seconds(0)));
                const int now = progress ? 1 : tries + 1;
                if (failure == Failure::kTransient && now < max_tries &&
                    after <= 30) {
                  ASSERT_EQ(got.kind, Kind::kSoon);
                  ASSERT_EQ(got.next, (RetryState{now, attempts}));
                  const milliseconds full = Doubled(
                      retry.first, retry.max, static_cast<uint32_t>(now - 1));
                  ASSERT_GE(got.delay, full / 2);
                  ASSERT_LE(got.delay, std::max<milliseconds>(
                                           full, wait.value_or(seconds(0))));
                } else {
                  ASSERT_EQ(got.kind, Kind::kLater);
                  ASSERT_EQ(got.next, (RetryState{0, attempts + 1}));
                  ASSERT_EQ(got.delay, std::max<milliseconds>(
                                           Doubled(kBackoff.first, kBackoff.max,
                                                   std::min(attempts, 30u)),
                                           wait.value_or(seconds(0))));
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST(RetryTest, JitterSpreadsOverTheSecondHalf) {
  const auto delay = [](double jitter) {
    return Decide({1, 0}, Failure::kTransient, std::nullopt, false, jitter,
                  kRetry, kBackoff)
        .delay;
  };
  EXPECT_EQ(delay(0.0), milliseconds(1000));
  EXPECT_EQ(delay(0.5), milliseconds(1500));
  EXPECT_GE(delay(0.9999), milliseconds(1990));
  EXPECT_LE(delay(0.9999), milliseconds(2000));
  // Out of range is pulled into it.
  EXPECT_EQ(delay(-7), milliseconds(1000));
  EXPECT_EQ(delay(7), milliseconds(2000));
}

TEST(RetryTest, BackoffWindows) {
  RetryState state;
  for (int expected : {60, 120, 240, 300, 300}) {
    const RetryDecision got = Decide(state, Failure::kDisk, std::nullopt, false,
                                     0.7, kRetry, kBackoff);
    EXPECT_EQ(got.kind, Kind::kLater);
    EXPECT_EQ(got.delay, seconds(expected));
    state = got.next;
  }
}

TEST(RetryTest, ProgressNeverRunsOut) {
  RetryState state;
  for (int i = 0; i < 100; ++i) {
    const RetryDecision got = Decide(state, Failure::kTransient, std::nullopt,
                                     true, 0, kRetry, kBackoff);
    ASSERT_EQ(got.kind, Kind::kSoon);
    state = got.next;
  }
}

TEST(RetryTest, WithoutProgressAnAttemptHasFiveTries) {
  RetryState state;
  int tries = 0;
  while (true) {
    ++tries;
    const RetryDecision got = Decide(state, Failure::kTransient, std::nullopt,
                                     false, 0, kRetry, kBackoff);
    state = got.next;
    if (got.kind != Kind::kSoon) break;
  }
  EXPECT_EQ(tries, 5);
}

}  // namespace
}  // namespace bim::transfer
