#include "pkg/exec/turns.h"

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <thread>
#include <vector>

namespace bim::exec {
namespace {

using Turn = std::unique_ptr<Turns::Turn>;

// Keeps the turns that come, and in which order they came.
class Asker {
 public:
  explicit Asker(size_t limit) : turns_(Turns::Make(limit)) {}
  ~Asker() { turns_->SetLimit(0); }  // no more come while it goes
  uint64_t Ask(int name, size_t max_waiting = 1024) {
    return turns_->Ask(
        [this, name](Turn turn) {
          (turn == nullptr ? refused : begun).push_back(name);
          if (turn != nullptr) held.push_back(std::move(turn));
        },
        max_waiting);
  }
  // Gives the oldest turn back. Out of `held` before: the next comes into it.
  void Give() {
    Turn turn = std::move(held.front());
    held.erase(held.begin());
  }
  Turns& turns() { return *turns_; }

  std::vector<int> begun;
  std::vector<int> refused;
  std::vector<Turn> held;

 private:
  const std::shared_ptr<Turns> turns_;
};

TEST(TurnsTest, AtOnceThenInTheOrderAsked) {
  Asker asker(2);
  for (int i = 0; i < 6; ++i) asker.Ask(i);
  EXPECT_EQ(asker.begun, (std::vector{0, 1}));
  asker.Give();
  EXPECT_EQ(asker.begun, (std::vector{0, 1, 2}));
  // Each turn given back begins the next.
  asker.Give();
  asker.Give();
  EXPECT_EQ(asker.begun, (std::vector{0, 1, 2, 3, 4}));
  EXPECT_EQ(asker.held.size(), 2u);
}

TEST(TurnsTest, RefusesWhenTooManyWait) {
  Asker asker(1);
  asker.Ask(0, 0);  // a free turn is had even when nobody may wait
  asker.Ask(1, 0);
  asker.Ask(2, 2);
  asker.Ask(3, 2);
  asker.Ask(4, 2);
  EXPECT_EQ(asker.begun, (std::vector{0}));
  EXPECT_EQ(asker.refused, (std::vector{1, 4}));
  // A refusal took nothing.
  asker.Give();
  asker.Give();
  EXPECT_EQ(asker.begun, (std::vector{0, 2, 3}));
}

TEST(TurnsTest, TakenOnlyWhenFreeAndNobodyWaits) {
  Asker asker(2);
  Turn first = asker.turns().Take();
  Turn second = asker.turns().Take();
  ASSERT_TRUE(first && second);
  EXPECT_EQ(asker.turns().Take(), nullptr);
  EXPECT_EQ(asker.turns().taken(), 2u);
  first.reset();
  EXPECT_EQ(asker.turns().taken(), 1u);
  // What is given back goes to who waits, never past them.
  first = asker.turns().Take();
  ASSERT_TRUE(first);
  asker.Ask(0);
  asker.Ask(1);
  first.reset();
  EXPECT_EQ(asker.turns().Take(), nullptr);
  second.reset();
  EXPECT_EQ(asker.begun, (std::vector{0, 1}));
  asker.Give();
  EXPECT_TRUE(asker.turns().Take());
}

// One is free for each: none is refused because another is just taking its own.
TEST(TurnsTest, AsManyAtOnceAsThereAreTurns) {
  constexpr int kThreads = 3;
  constexpr int kRounds = 2000;
  const auto turns = Turns::Make(kThreads);
  std::atomic<int> refused{0};
  std::barrier together(kThreads);
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&] {
        for (int j = 0; j < kRounds; ++j) {
          together.arrive_and_wait();
          const Turn turn = turns->Take();
          if (turn == nullptr) ++refused;
          together.arrive_and_wait();
        }
      });
    }
  }
  EXPECT_EQ(refused, 0);
  EXPECT_EQ(turns->taken(), 0u);
}

TEST(TurnsTest, WithdrawnOnesNeitherWaitNorBegin) {
  Asker asker(1);
  const uint64_t begun = asker.Ask(0);
  const uint64_t waiting = asker.Ask(1, 1);
  asker.turns().Withdraw(begun);
  asker.turns().Withdraw(waiting);
  asker.turns().Withdraw(waiting);
  asker.turns().Withdraw(12345);
  asker.Ask(2, 1);
  EXPECT_TRUE(asker.refused.empty());
  asker.Give();
  EXPECT_EQ(asker.begun, (std::vector{0, 2}));
}

TEST(TurnsTest, LimitChangesWhileTheyWait) {
  Asker asker(0);
  for (int i = 0; i < 5; ++i) asker.Ask(i);
  EXPECT_TRUE(asker.begun.empty());
  asker.turns().SetLimit(3);
  EXPECT_EQ(asker.begun, (std::vector{0, 1, 2}));
  // Who has a turn keeps it; the next comes when fewer than the limit are left.
  asker.turns().SetLimit(1);
  EXPECT_EQ(asker.held.size(), 3u);
  asker.Give();
  asker.Give();
  EXPECT_EQ(asker.begun, (std::vector{0, 1, 2}));
  asker.Give();
  EXPECT_EQ(asker.begun, (std::vector{0, 1, 2, 3}));
}

TEST(TurnsTest, DroppedTurnsGoOnWithoutRecursion) {
  const auto turns = Turns::Make(1);
  Turn first;
  turns->Ask([&](Turn turn) { first = std::move(turn); });
  size_t dropped = 0;
  constexpr size_t kMany = 100'000;  // too many frames for any stack
  for (size_t i = 0; i < kMany; ++i)
    turns->Ask([&](Turn) { ++dropped; }, kMany);
  first.reset();
  EXPECT_EQ(dropped, kMany);
}

TEST(TurnsTest, AskingInBegin) {
  const auto turns = Turns::Make(1);
  std::vector<int> order;
  turns->Ask([&](Turn) {
    order.push_back(0);
    turns->Ask([&](Turn) { order.push_back(2); });
    order.push_back(1);
  });
  EXPECT_EQ(order, (std::vector{0, 1, 2}));
}

TEST(TurnsTest, LiveAsLongAsATurn) {
  auto turns = Turns::Make(1);
  Turn held;
  turns->Ask([&](Turn turn) { held = std::move(turn); });
  bool begun = false;
  turns->Ask([&](Turn) { begun = true; });
  turns.reset();
  held.reset();
  EXPECT_TRUE(begun);
}

TEST(TurnsTest, NeverMoreThanTheLimitOnManyThreads) {
  const auto turns = Turns::Make(3);
  std::atomic<int> inside{0};
  std::atomic<int> most{0};
  std::atomic<int> had{0};
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&] {
        for (int j = 0; j < 500; ++j) {
          std::atomic<bool> done{false};
          const uint64_t ticket = turns->Ask([&](Turn turn) {
            const int now = ++inside;
            int before = most;
            while (now > before && !most.compare_exchange_weak(before, now)) {
            }
            ++had;
            --inside;
            turn.reset();
            done = true;
            done.notify_all();
          });
          done.wait(false);
          turns->Withdraw(ticket);
        }
      });
    }
  }
  EXPECT_EQ(had, 8 * 500);
  EXPECT_LE(most, 3);
}

}  // namespace
}  // namespace bim::exec
