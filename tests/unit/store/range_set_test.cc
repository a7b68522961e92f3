#include "pkg/store/range_set.h"

#include <gtest/gtest.h>

#include <random>

namespace bim::store {
namespace {

// The same by other means: one flag for each byte.
class Flags {
 public:
  static constexpr uint64_t kSize = 12;

  uint64_t Set(uint64_t begin, uint64_t end, bool value) {
    uint64_t changed = 0;
    for (uint64_t i = begin; i < end; ++i) {
      changed += flags_[i] != value;
      flags_[i] = value;
    }
    return changed;
  }
  uint64_t Count(uint64_t begin, uint64_t end) const {
    uint64_t count = 0;
    for (uint64_t i = begin; i < end; ++i) count += flags_[i];
    return count;
  }
  std::vector<io::Extent> Runs(uint64_t begin, uint64_t end, bool value) const {
    std::vector<io::Extent> runs;
    for (uint64_t i = begin; i < end; ++i) {
      if (flags_[i] != value) continue;
      if (runs.empty() || runs.back().end != i) runs.push_back({i, i});
      ++runs.back().end;
    }
    return runs;
  }
  bool At(uint64_t i) const { return i < kSize && flags_[i]; }

 private:
  bool flags_[kSize] = {};
};

bool Same(const std::vector<io::Extent>& a, const std::vector<io::Extent>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const io::Extent& x, const io::Extent& y) {
                      return x.begin == y.begin && x.end == y.end;
                    });
}

void ExpectSame(const RangeSet& set, const Flags& flags) {
  ASSERT_EQ(set.covered(), flags.Count(0, Flags::kSize));
  ASSERT_EQ(set.pieces(), flags.Runs(0, Flags::kSize, true).size());
  for (uint64_t begin = 0; begin <= Flags::kSize; ++begin) {
    for (uint64_t end = begin; end <= Flags::kSize; ++end) {
      const uint64_t count = flags.Count(begin, end);
      ASSERT_EQ(set.Contains(begin, end), count == end - begin);
      ASSERT_EQ(set.Overlaps(begin, end), count > 0);
      ASSERT_EQ(set.Joins(begin, end), begin == end || count > 0 ||
                                           flags.At(end) ||
                                           (begin > 0 && flags.At(begin - 1)));
      ASSERT_TRUE(Same(set.Gaps(begin, end), flags.Runs(begin, end, false)));
    }
  }
}

RangeSet SetOf(const Flags& flags) {
  RangeSet set;
  for (const io::Extent& run : flags.Runs(0, Flags::kSize, true)) {
    set.Add(run.begin, run.end);
  }
  return set;
}

// Every set of 12 bytes, and every range that may be added to or removed from
// it.
TEST(RangeSetTest, EveryRangeOnEverySet) {
  for (uint32_t bits = 0; bits < (1u << Flags::kSize); ++bits) {
    Flags flags;
    for (uint64_t i = 0; i < Flags::kSize; ++i) {
      flags.Set(i, i + 1, (bits >> i & 1) != 0);
    }
    const RangeSet set = SetOf(flags);
    ExpectSame(set, flags);
    for (uint64_t begin = 0; begin <= Flags::kSize; ++begin) {
      for (uint64_t end = begin; end <= Flags::kSize; ++end) {
        for (const bool add : {true, false}) {
          RangeSet changed = set;
          Flags expected = flags;
          ASSERT_EQ(add ? changed.Add(begin, end) : changed.Remove(begin, end),
                    expected.Set(begin, end, add));
          ASSERT_EQ(changed.covered(), expected.Count(0, Flags::kSize));
          ASSERT_EQ(changed.pieces(),
                    expected.Runs(0, Flags::kSize, true).size());
          ASSERT_TRUE(Same(changed.Gaps(0, Flags::kSize),
                           expected.Runs(0, Flags::kSize, false)));
        }
      }
    }
  }
}

TEST(RangeSetTest, LongSequences) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    RangeSet set;
    Flags flags;
    for (int step = 0; step < 30; ++step) {
      const uint64_t begin = random() % (Flags::kSize + 1);
      const uint64_t end = begin + random() % (Flags::kSize + 1 - begin);
      const bool add = random() % 3 != 0;
      ASSERT_EQ(add ? set.Add(begin, end) : set.Remove(begin, end),
                flags.Set(begin, end, add));
      ExpectSame(set, flags);
    }
    set.Clear();
    ExpectSame(set, Flags());
  }
}

TEST(RangeSetTest, TheEndsOfWhatThereIs) {
  RangeSet set;
  EXPECT_EQ(set.Add(UINT64_MAX - 2, UINT64_MAX), 2u);
  EXPECT_EQ(set.Add(0, 2), 2u);
  EXPECT_TRUE(set.Contains(UINT64_MAX - 1, UINT64_MAX));
  EXPECT_EQ(set.Gaps(0, UINT64_MAX).size(), 1u);
  EXPECT_EQ(set.Add(0, UINT64_MAX), UINT64_MAX - 4);
  EXPECT_EQ(set.pieces(), 1u);
  EXPECT_EQ(set.Remove(0, UINT64_MAX), UINT64_MAX);
  EXPECT_EQ(set.pieces(), 0u);
}

}  // namespace
}  // namespace bim::store
