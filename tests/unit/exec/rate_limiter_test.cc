#include "pkg/exec/rate_limiter.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace bim::exec {
namespace {

using namespace std::chrono_literals;
using Clock = RateLimiter::Clock;

double Seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Later than the limiter's own beginning, so that only this time counts.
Clock::time_point Later() { return Clock::now() + 1h; }

TEST(RateLimiterTest, NoLimit) {
  RateLimiter limiter;
  EXPECT_EQ(limiter.rate(), 0u);
  EXPECT_EQ(limiter.Take(1ull << 60, Later()), 0ns);
  EXPECT_TRUE(limiter.Wait(1ull << 60, {}));
}

TEST(RateLimiterTest, TakeSaysHowLongToWait) {
  RateLimiter limiter(1000);
  const auto now = Later();
  // The bucket holds a quarter of a second's worth, however long nobody came.
  EXPECT_EQ(limiter.Take(250, now), 0ns);
  EXPECT_NEAR(Seconds(limiter.Take(500, now)), 0.5, 1e-6);
  // Debt adds up, and is paid off by the time.
  EXPECT_NEAR(Seconds(limiter.Take(100, now + 100ms)), 0.5, 1e-6);
  EXPECT_EQ(limiter.Take(0, now + 600ms), 0ns);
  EXPECT_EQ(limiter.Take(100, now + 700ms), 0ns);
  EXPECT_NEAR(Seconds(limiter.Take(1, now + 700ms)), 0.001, 1e-6);
  // A clock that seems to go back adds nothing.
  EXPECT_NEAR(Seconds(limiter.Take(1, now)), 0.002, 1e-6);
}

TEST(RateLimiterTest, AnotherRateForgives) {
  RateLimiter limiter(1000);
  const auto now = Later();
  limiter.Take(1'000'000, now);
  limiter.SetRate(1000);  // the same: nothing changes
  EXPECT_GT(limiter.Take(0, now), 100s);
  limiter.SetRate(2000);
  EXPECT_EQ(limiter.rate(), 2000u);
  EXPECT_EQ(limiter.Take(0, now), 0ns);
  EXPECT_NEAR(Seconds(limiter.Take(2000, now)), 1.0, 1e-6);
}

TEST(RateLimiterTest, WaitTakesAsLongAsItMust) {
  RateLimiter limiter(1'000'000);
  const auto begin = Clock::now();
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(limiter.Wait(10'000, {}));
  const auto took = Clock::now() - begin;
  EXPECT_GT(took, 190ms);
  EXPECT_LT(took, 2s);
}

TEST(RateLimiterTest, RateChangesWhileTheyWait) {
  for (const uint64_t rate : {uint64_t{0}, uint64_t{1} << 40}) {
    RateLimiter limiter(1);
    std::atomic<int> passed{0};
    std::vector<std::jthread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back(
          [&] { passed += limiter.Wait(1'000'000, {}) ? 1 : 0; });
    }
    // Until all have taken: 3 MB are owed.
    while (limiter.Take(0, Clock::now()) < 2'900'000s)
      std::this_thread::yield();
    EXPECT_EQ(passed, 0);
    limiter.SetRate(rate);
    threads.clear();
    EXPECT_EQ(passed, 3);
  }
}

TEST(RateLimiterTest, StopEndsTheWaitAndTakesNothing) {
  RateLimiter limiter(1);
  std::stop_source stop;
  std::atomic<bool> passed{true};
  std::jthread waiter(
      [&] { passed = limiter.Wait(1'000'000, stop.get_token()); });
  while (limiter.Take(0, Clock::now()) < 900'000s) std::this_thread::yield();
  stop.request_stop();
  waiter.join();
  EXPECT_FALSE(passed);
  EXPECT_LT(limiter.Take(0, Clock::now()), 1s);
  EXPECT_FALSE(limiter.Wait(1, stop.get_token()));
  RateLimiter free;
  EXPECT_FALSE(free.Wait(1, stop.get_token()));
}

TEST(RateLimiterTest, WaitsOnlyForWhatWasAskedBefore) {
  RateLimiter limiter(1'000'000);
  std::atomic<bool> passed{false};
  const auto begin = Clock::now();
  std::jthread waiter([&] {
    EXPECT_TRUE(limiter.Wait(100'000, {}));
    passed = true;
  });
  // Those that come later go on taking all the time: there is always a debt.
  Clock::duration took{};
  while (!passed && (took = Clock::now() - begin) < 5s) {
    limiter.Take(20'000, Clock::now());
    std::this_thread::sleep_for(5ms);
  }
  EXPECT_TRUE(passed);
  EXPECT_LT(took, 2s);
  limiter.SetRate(0);
}

TEST(RateLimiterTest, SharedByManyThreads) {
  RateLimiter limiter(4'000'000);
  const auto begin = Clock::now();
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&] {
        for (int j = 0; j < 10; ++j) EXPECT_TRUE(limiter.Wait(10'000, {}));
      });
    }
  }
  const auto took = Clock::now() - begin;
  EXPECT_GT(took, 190ms);
  EXPECT_LT(took, 2s);
}

}  // namespace
}  // namespace bim::exec
