#include "pkg/exec/worker_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <latch>
#include <memory>

namespace bim::exec {
namespace {

constexpr std::chrono::seconds kDeadline{30};

// How many threads of this process have the name.
size_t ThreadsNamed(const std::string& name) {
  size_t count = 0;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream comm(task.path() / "comm");
    std::string line;
    std::getline(comm, line);
    count += line == name;
  }
  return count;
}

TEST(WorkerPoolTest, AllOfItRunsInOrderOnOneThread) {
  WorkerPool pool("one", 1);
  std::vector<int> order;
  std::promise<void> done;
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(pool.Submit([&, i] {
      order.push_back(i);
      if (i == 999) done.set_value();
    }));
  }
  done.get_future().wait();
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(order[i], i);
  EXPECT_EQ(ThreadsNamed("one"), 1u);
}

TEST(WorkerPoolTest, AsManyAtOnceAsAllowedAndNoMore) {
  constexpr int kThreads = 4;
  WorkerPool pool("four", kThreads);
  std::latch all_in(kThreads);
  std::latch all_done(32);
  std::atomic<int> running{0}, most{0};
  for (int i = 0; i < 32; ++i) {
    pool.Submit([&, i] {
      const int now = ++running;
      int seen = most.load();
      while (now > seen && !most.compare_exchange_weak(seen, now)) {
      }
      // The first four only pass together.
      if (i < kThreads) all_in.arrive_and_wait();
      --running;
      all_done.count_down();
    });
  }
  all_done.wait();
  EXPECT_EQ(most.load(), kThreads);
  EXPECT_EQ(ThreadsNamed("four"), static_cast<size_t>(kThreads));
}

TEST(WorkerPoolTest, ABlockedThreadDoesNotHoldUpTheOthers) {
  std::promise<void> entered, leave;  // used until the pool is gone
  WorkerPool pool("two", 2);
  pool.Submit([&] {
    entered.set_value();
    leave.get_future().wait();
  });
  entered.get_future().wait();
  for (int i = 0; i < 100; ++i) {
    const auto done = std::make_shared<std::promise<void>>();
    pool.Submit([done] { done->set_value(); });
    ASSERT_EQ(done->get_future().wait_for(kDeadline),
              std::future_status::ready);
  }
  leave.set_value();
}

TEST(WorkerPoolTest, ShutdownWaitsForWhatRunsAndDropsTheRest) {
  auto held = std::make_shared<int>(1);
  std::atomic<bool> finished{false}, dropped_ran{false};
  std::promise<void> entered, leave;
  WorkerPool pool("stop", 1);
  pool.Submit([&] {
    entered.set_value();
    leave.get_future().wait();
    finished = true;
  });
  entered.get_future().wait();
  pool.Submit([&, held] { dropped_ran = true; });
  auto shutdown = std::async(std::launch::async, [&] { pool.Shutdown(); });
  // Refused from the moment that it stops.
  while (pool.Submit([] {})) std::this_thread::yield();
  EXPECT_FALSE(finished.load());
  leave.set_value();
  shutdown.wait();
  EXPECT_TRUE(finished.load());
  EXPECT_FALSE(dropped_ran.load());
  EXPECT_EQ(held.use_count(), 1);
  pool.Shutdown();
  EXPECT_FALSE(pool.Submit([] {}));
  EXPECT_EQ(ThreadsNamed("stop"), 0u);
}

TEST(WorkerPoolTest, ASecondShutdownWaitsToo) {
  std::promise<void> entered, leave;
  std::atomic<bool> finished{false};
  WorkerPool pool("twice", 1);
  pool.Submit([&] {
    entered.set_value();
    leave.get_future().wait();
    finished = true;
  });
  entered.get_future().wait();
  auto first = std::async(std::launch::async, [&] { pool.Shutdown(); });
  while (pool.Submit([] {})) std::this_thread::yield();
  auto second = std::async(std::launch::async, [&] {
    pool.Shutdown();
    return finished.load();
  });
  EXPECT_EQ(second.wait_for(std::chrono::milliseconds(50)),
            std::future_status::timeout);
  leave.set_value();
  EXPECT_TRUE(second.get()) << "it returned while work was running";
  first.wait();
}

TEST(WorkerPoolTest, WorkMaySubmitWork) {
  WorkerPool pool("more", 2);
  std::promise<void> done;
  std::function<void(int)> next = [&](int left) {
    if (left == 0) {
      done.set_value();
    } else {
      pool.Submit([&next, left] { next(left - 1); });
    }
  };
  next(500);
  EXPECT_EQ(done.get_future().wait_for(kDeadline), std::future_status::ready);
}

TEST(WorkerPoolTest, SubmitsFromManyThreads) {
  std::atomic<int> count{0};
  {
    WorkerPool pool("many", 3);
    std::latch done(4000);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 1000; ++i) {
          EXPECT_TRUE(pool.Submit([&] {
            ++count;
            done.count_down();
          }));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    done.wait();
  }
  EXPECT_EQ(count.load(), 4000);
}

TEST(WorkerPoolTest, WhatWorkHoldsIsLetGoAfterIt) {
  WorkerPool pool("let-go", 1);
  auto held = std::make_shared<int>(1);
  std::weak_ptr<int> weak = held;
  std::promise<void> next;
  pool.Submit([held = std::move(held)] {});
  pool.Submit([&] { next.set_value(); });
  next.get_future().wait();
  EXPECT_TRUE(weak.expired());
}

TEST(WorkerPoolTest, IdleThreadsLeaveAndComeBack) {
  WorkerPool pool("idle", 3);
  std::latch in(3);
  for (int i = 0; i < 3; ++i) pool.Submit([&] { in.arrive_and_wait(); });
  in.wait();
  EXPECT_EQ(ThreadsNamed("idle"), 3u);
  // They leave after 10 s: waiting for it is all that can be done.
  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  while (ThreadsNamed("idle") > 0 &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_EQ(ThreadsNamed("idle"), 0u);
  std::promise<void> done;
  ASSERT_TRUE(pool.Submit([&] { done.set_value(); }));
  EXPECT_EQ(done.get_future().wait_for(kDeadline), std::future_status::ready);
}

}  // namespace
}  // namespace bim::exec
