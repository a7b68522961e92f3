#include "pkg/transfer/range_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

namespace bim::transfer {
namespace {

using Claim = RangeQueue::Claim;

uint64_t LengthOf(const io::Extent& range) { return range.end - range.begin; }

TEST(RangeQueueTest, EmptyIsDone) {
  RangeQueue queue(1);
  EXPECT_TRUE(queue.done());
  EXPECT_EQ(queue.remaining(), 0u);
  EXPECT_EQ(queue.Take(0, 1), nullptr);
  queue.Add({});
  queue.Add({{5, 5}});
  EXPECT_TRUE(queue.done());
}

TEST(RangeQueueTest, FromTheFrontInAlignedPieces) {
  RangeQueue queue(10);
  queue.Add({{3, 47}, {60, 65}});
  EXPECT_EQ(queue.remaining(), 49u);
  const uint64_t expected[][2] = {{3, 20}, {20, 40}, {40, 47}, {60, 65}};
  for (const auto& range : expected) {
    const Claim* claim = queue.Take(11, 0);
    ASSERT_NE(claim, nullptr);
    EXPECT_EQ(queue.RangeOf(claim).begin, range[0]);
    EXPECT_EQ(queue.RangeOf(claim).end, range[1]);
  }
  EXPECT_EQ(queue.Take(11, 0), nullptr);
  EXPECT_FALSE(queue.done());
}

TEST(RangeQueueTest, AllOfTheFirstRange) {
  RangeQueue queue(10);
  queue.Add({{3, 47}, {60, 65}});
  EXPECT_EQ(LengthOf(queue.RangeOf(queue.Take(0, 0))), 44u);
  EXPECT_EQ(LengthOf(queue.RangeOf(queue.Take(0, 0))), 5u);
}

TEST(RangeQueueTest, WhatIsReturnedIsGivenOutFirst) {
  RangeQueue queue(10);
  queue.Add({{0, 100}});
  Claim* first = queue.Take(30, 0);
  Claim* second = queue.Take(30, 0);
  EXPECT_EQ(queue.Advance(first, 7), 7u);
  EXPECT_EQ(queue.remaining(), 93u);
  queue.Return(second, 40);
  queue.Return(first, 5);  // two of its bytes were of no use
  EXPECT_EQ(queue.remaining(), 85u);
  Claim* again = queue.Take(0, 0);
  EXPECT_EQ(queue.RangeOf(again).begin, 5u);
  EXPECT_EQ(queue.RangeOf(again).end, 30u);
  again = queue.Take(0, 0);
  EXPECT_EQ(queue.RangeOf(again).begin, 40u);
  EXPECT_EQ(queue.RangeOf(again).end, 100u);
}

TEST(RangeQueueTest, AReaderNeverGetsMoreThanItsRange) {
  RangeQueue queue(1);
  queue.Add({{0, 10}});
  Claim* claim = queue.Take(0, 0);
  EXPECT_EQ(queue.Advance(claim, 4), 4u);
  EXPECT_EQ(queue.Advance(claim, UINT64_MAX), 6u);
  EXPECT_EQ(queue.Advance(claim, 1), 0u);
  EXPECT_EQ(queue.RangeOf(claim).begin, 10u);
  EXPECT_FALSE(queue.done());
  queue.Return(claim, 10);
  EXPECT_TRUE(queue.done());
}

TEST(RangeQueueTest, TheLargestClaimIsCut) {
  RangeQueue queue(10);
  queue.Add({{0, 50}, {100, 200}});
  Claim* small = queue.Take(0, 0);
  Claim* large = queue.Take(0, 0);
  EXPECT_EQ(queue.Advance(large, 20), 20u);
  Claim* cut = queue.Take(0, 20);
  ASSERT_NE(cut, nullptr);
  EXPECT_EQ(queue.RangeOf(small).end, 50u);
  EXPECT_EQ(queue.RangeOf(large).end, 160u);
  EXPECT_EQ(queue.RangeOf(cut).begin, 160u);
  EXPECT_EQ(queue.RangeOf(cut).end, 200u);
  // Not in pieces that are too small.
  EXPECT_EQ(queue.Take(0, 30), nullptr);
  EXPECT_EQ(queue.Take(0, 0), nullptr);
}

TEST(RangeQueueTest, ACutIsNearItsReader) {
  RangeQueue queue(10);
  queue.Add({{0, 1000}});
  Claim* claim = queue.Take(0, 0);
  Claim* cut = queue.Take(50, 20);
  ASSERT_NE(cut, nullptr);
  EXPECT_EQ(queue.RangeOf(claim).end, 50u);
  EXPECT_EQ(queue.RangeOf(cut).begin, 50u);
  EXPECT_EQ(queue.RangeOf(cut).end, 100u);
}

// All there is to a cut: whatever the numbers.
TEST(RangeQueueTest, CutsAreAlignedAndLeaveEnoughOnBothSides) {
  for (const uint64_t align : {1, 4, 10}) {
    for (uint64_t begin = 0; begin < 23; begin += 3) {
      for (uint64_t length = 1; length < 60; ++length) {
        for (const uint64_t min_cut : {1, 2, 7, 10, 20}) {
          for (const uint64_t max : {0, 1, 5, 20, 100}) {
            RangeQueue queue(align);
            queue.Add({{begin, begin + length}});
            const Claim* claim = queue.Take(0, 0);
            const Claim* cut = queue.Take(max, min_cut);
            const io::Extent left = queue.RangeOf(claim);
            SCOPED_TRACE(testing::Message()
                         << align << " [" << begin << " +" << length << ") "
                         << min_cut << " " << max);
            ASSERT_EQ(queue.remaining(), length);
            if (cut == nullptr) {
              ASSERT_EQ(LengthOf(left), length);
              // With room for both and for the alignment there is a cut.
              ASSERT_LT(length, 2 * min_cut + 2 * align);
              continue;
            }
            ASSERT_EQ(left.end % align, 0u);
            ASSERT_GE(LengthOf(left), min_cut);
            ASSERT_GE(begin + length - left.end, min_cut);
            ASSERT_EQ(queue.RangeOf(cut).begin, left.end);
          }
        }
      }
    }
  }
}

// Who reads which bytes, played at random: each byte is kept exactly once.
class Play {
 public:
  Play(uint32_t seed, uint64_t align)
      : random_(seed), align_(align), queue_(align) {}

  void Run() {
    std::vector<io::Extent> ranges;
    uint64_t at = random_() % 50;
    for (int i = 0; i < 5; ++i) {
      const uint64_t end = at + random_() % 400;
      ranges.push_back({at, end});
      if (end > at) ends_.push_back(end);
      at = end + random_() % 2 * (1 + random_() % 90);
    }
    given_.assign(at + 1, 0);
    wanted_.assign(at + 1, 0);
    for (const io::Extent& range : ranges) {
      std::fill(wanted_.begin() + static_cast<ptrdiff_t>(range.begin),
                wanted_.begin() + static_cast<ptrdiff_t>(range.end), 1);
    }
    queue_.Add(ranges);
    for (int step = 0; !queue_.done(); ++step) {
      ASSERT_LT(step, 100'000);
      Step();
      if (testing::Test::HasFatalFailure()) return;
    }
    EXPECT_TRUE(readers_.empty());
    EXPECT_EQ(given_, wanted_);
    EXPECT_EQ(queue_.remaining(), 0u);
  }

 private:
  struct Reader {
    Claim* claim;
    uint64_t begin;
    uint64_t position;
  };

  void Step() {
    if (readers_.size() < 6 && random_() % 3 == 0) {
      const uint64_t min_cut = random_() % 3 == 0 ? 0 : 1 + random_() % 40;
      Claim* claim =
          queue_.Take(random_() % 2 * (1 + random_() % 100), min_cut);
      if (claim == nullptr) return;
      const io::Extent range = queue_.RangeOf(claim);
      ASSERT_LT(range.begin, range.end);
      ASSERT_TRUE(range.end % align_ == 0 ||
                  std::find(ends_.begin(), ends_.end(), range.end) !=
                      ends_.end())
          << range.end;
      for (const Reader& other : readers_) {
        const io::Extent theirs = queue_.RangeOf(other.claim);
        ASSERT_TRUE(range.end <= theirs.begin || theirs.end <= range.begin);
      }
      readers_.push_back({claim, range.begin, range.begin});
      return;
    }
    if (readers_.empty()) return;
    const size_t i = random_() % readers_.size();
    Reader& reader = readers_[i];
    const io::Extent range = queue_.RangeOf(reader.claim);
    ASSERT_EQ(range.begin, reader.position);
    if (random_() % 8 != 0 && range.begin < range.end) {
      const uint64_t count = 1 + random_() % 60;
      const uint64_t taken = queue_.Advance(reader.claim, count);
      ASSERT_EQ(taken, std::min(count, LengthOf(range)));
      Mark(reader.position, reader.position + taken, 1);
      reader.position += taken;
      return;
    }
    // Done, broken off, or some of it was wrong.
    uint64_t back = reader.position;
    if (back < range.end && random_() % 3 == 0) {
      back -= random_() % (back - reader.begin + 1);
      Mark(back, reader.position, -1);
    }
    queue_.Return(reader.claim, back);
    readers_.erase(readers_.begin() + static_cast<ptrdiff_t>(i));
  }
  void Mark(uint64_t begin, uint64_t end, int count) {
    for (uint64_t at = begin; at < end; ++at) given_[at] += count;
  }

  std::mt19937 random_;
  const uint64_t align_;
  RangeQueue queue_;
  std::vector<Reader> readers_;
  std::vector<int> given_;
  std::vector<int> wanted_;
  std::vector<uint64_t> ends_;
};

TEST(RangeQueueTest, EveryByteOnceHoweverItIsPlayed) {
  for (uint32_t seed = 0; seed < 600; ++seed) {
    SCOPED_TRACE(seed);
    for (const uint64_t align : {1, 8, 64}) {
      Play(seed, align).Run();
      if (HasFailure()) return;
    }
  }
}

TEST(RangeQueueTest, EveryByteOnceOnThreads) {
  constexpr uint64_t kSize = 200'000;
  for (uint32_t round = 0; round < 5; ++round) {
    RangeQueue queue(64);
    queue.Add({{0, kSize / 2 + 13}, {kSize / 2 + 100, kSize}});
    std::vector<std::atomic<int>> given(kSize);
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        std::mt19937 random(round * 10 + i);
        while (!queue.done()) {
          Claim* claim = queue.Take(random() % 5000, 100);
          if (claim == nullptr) {
            std::this_thread::yield();
            continue;
          }
          uint64_t at = queue.RangeOf(claim).begin;
          while (random() % 50 != 0) {
            const uint64_t want = 1 + random() % 700;
            const uint64_t taken = queue.Advance(claim, want);
            for (uint64_t end = at + taken; at < end; ++at) ++given[at];
            if (taken < want) break;
          }
          queue.Return(claim, at);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (uint64_t at = 0; at < kSize; ++at) {
      const bool gap = at >= kSize / 2 + 13 && at < kSize / 2 + 100;
      ASSERT_EQ(given[at], gap ? 0 : 1) << at;
    }
  }
}

}  // namespace
}  // namespace bim::transfer
