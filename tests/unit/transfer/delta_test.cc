#include "pkg/transfer/delta.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

namespace bim::transfer {
namespace {

using store::Chunk;
using store::ImageRecord;
using store::kMaxChunks;
using store::kMinChunkSize;

// Content 0 is zeros; every other number a digest of its own.
Chunk ChunkOf(uint32_t content) {
  Chunk chunk;
  chunk.zero = content == 0;
  if (!chunk.zero) {
    // Digests that differ only at their end, too.
    chunk.sha256.fill(std::byte{0x5a});
    for (int i = 0; i < 4; ++i) {
      chunk.sha256[28 + i] = static_cast<std::byte>(content >> (8 * i));
    }
  }
  return chunk;
}

// `shorter`: bytes that the last chunk lacks.
ImageRecord Image(const std::vector<uint32_t>& contents, uint64_t shorter = 0,
                  uint64_t chunk_size = kMinChunkSize) {
  ImageRecord image;
  image.chunk_size = chunk_size;
  image.stamp.size = contents.size() * chunk_size - shorter;
  for (uint32_t content : contents) image.chunks.push_back(ChunkOf(content));
  image.chunk_count = static_cast<uint32_t>(contents.size());
  return image;
}

std::vector<uint32_t> AllOf(const ImageRecord& image) {
  std::vector<uint32_t> all(image.chunks.size());
  for (uint32_t i = 0; i < all.size(); ++i) all[i] = i;
  return all;
}

using Matches = std::vector<ChunkMatch>;

TEST(ChunkIndexTest, FindsWhatTheCandidateHas) {
  const ImageRecord wanted = Image({1, 2, 3, 4, 5});
  ChunkIndex index(wanted, AllOf(wanted));
  EXPECT_FALSE(index.complete());
  EXPECT_EQ(index.Match(Image({9, 4, 8, 2, 7, 6, 10})),
            (Matches{{1, 3}, {3, 1}}));
  // Each at most once.
  EXPECT_EQ(index.Match(Image({2, 4, 5})), (Matches{{4, 2}}));
  EXPECT_FALSE(index.complete());
  EXPECT_EQ(index.Match(Image({3, 1})), (Matches{{0, 1}, {2, 0}}));
  EXPECT_TRUE(index.complete());
  EXPECT_EQ(index.Match(wanted), Matches{});
}

TEST(ChunkIndexTest, OnlyWhatIsMissing) {
  const ImageRecord wanted = Image({1, 2, 3, 4});
  ChunkIndex index(wanted, {3, 1, 3, 1, 1});
  EXPECT_EQ(index.Match(wanted), (Matches{{1, 1}, {3, 3}}));
  EXPECT_TRUE(index.complete());
}

TEST(ChunkIndexTest, NothingMissing) {
  const ImageRecord wanted = Image({1, 2});
  ChunkIndex index(wanted, {});
  EXPECT_TRUE(index.complete());
  EXPECT_EQ(index.Match(wanted), Matches{});
}

TEST(ChunkIndexTest, ZeroChunksAreNeverMatchedAndNeverWaitedFor) {
  const ImageRecord wanted = Image({0, 1, 0});
  ChunkIndex index(wanted, AllOf(wanted));
  EXPECT_EQ(index.Match(Image({0, 0, 0})), Matches{});
  EXPECT_FALSE(index.complete());
  EXPECT_EQ(index.Match(wanted), (Matches{{1, 1}}));
  EXPECT_TRUE(index.complete());
  index.Unmatch(0);
  EXPECT_TRUE(index.complete());

  const ImageRecord zeros = Image({0, 0});
  EXPECT_TRUE(ChunkIndex(zeros, {0, 1}).complete());
}

TEST(ChunkIndexTest, AZeroMarkCountsNotItsDigest) {
  // A chunk marked zero that carries the digest of another one.
  ImageRecord wanted = Image({1, 2});
  ImageRecord candidate = Image({1, 2});
  candidate.chunks[0].zero = true;
  ChunkIndex index(wanted, AllOf(wanted));
  EXPECT_EQ(index.Match(candidate), (Matches{{1, 1}}));
  // And a digest of zero bytes is one like any other.
  wanted.chunks[0].sha256.fill(std::byte{0});
  candidate.chunks[0] = wanted.chunks[0];
  ChunkIndex other(wanted, AllOf(wanted));
  EXPECT_EQ(other.Match(candidate), (Matches{{0, 0}, {1, 1}}));
}

TEST(ChunkIndexTest, RepeatedContent) {
  const ImageRecord wanted = Image({7, 1, 7, 2, 7});
  {
    ChunkIndex index(wanted, AllOf(wanted));
    // One chunk of the candidate serves all.
    EXPECT_EQ(index.Match(Image({3, 7})), (Matches{{0, 1}, {2, 1}, {4, 1}}));
  }
  {
    ChunkIndex index(wanted, {2});
    EXPECT_EQ(index.Match(Image({7, 7, 7})), (Matches{{2, 0}}));
    EXPECT_TRUE(index.complete());
  }
}

TEST(ChunkIndexTest, LengthsMustBeEqual) {
  // The last chunk of `wanted` lacks 512 bytes; digests here do not tell.
  const ImageRecord wanted = Image({1, 2}, 512);
  const auto match = [&](const ImageRecord& candidate) {
    ChunkIndex index(wanted, AllOf(wanted));
    return index.Match(candidate);
  };
  EXPECT_EQ(match(Image({2, 1})), (Matches{{0, 1}}));
  EXPECT_EQ(match(Image({3, 4, 2})), Matches{});
  EXPECT_EQ(match(Image({3, 4, 2}, 512)), (Matches{{1, 2}}));
  EXPECT_EQ(match(Image({3, 4, 2}, 1024)), Matches{});
  // The candidate's last one is the short one.
  EXPECT_EQ(match(Image({2, 1}, 512)), Matches{});
  // A whole and a short one of the same digest: each finds its own.
  const ImageRecord both = Image({2, 5, 2}, 512);
  ChunkIndex index(both, AllOf(both));
  EXPECT_EQ(index.Match(Image({9, 2, 2}, 512)), (Matches{{0, 1}, {2, 2}}));
}

TEST(ChunkIndexTest, CandidatesThatDoNotFit) {
  const ImageRecord wanted = Image({1, 2, 3});
  ChunkIndex index(wanted, AllOf(wanted));
  EXPECT_EQ(index.Match(Image({1, 2, 3}, 0, 2 * kMinChunkSize)), Matches{});
  // Only the header was read, or there is no manifest.
  ImageRecord header = wanted;
  header.chunks.clear();
  EXPECT_EQ(index.Match(header), Matches{});
  EXPECT_EQ(index.Match(ImageRecord{}), Matches{});
  // More or fewer chunks than its size has.
  for (uint64_t size :
       {uint64_t{0}, 2 * kMinChunkSize, 3 * kMinChunkSize + 1, ~uint64_t{0}}) {
    ImageRecord odd = wanted;
    odd.stamp.size = size;
    EXPECT_EQ(index.Match(odd), Matches{}) << size;
  }
  EXPECT_FALSE(index.complete());
  EXPECT_EQ(index.Match(wanted).size(), 3u);
}

TEST(ChunkIndexTest, Unmatch) {
  const ImageRecord wanted = Image({1, 7, 7, 2});
  ChunkIndex index(wanted, {0, 1, 2});
  index.Unmatch(0);  // not matched yet
  EXPECT_FALSE(index.complete());
  EXPECT_EQ(index.Match(wanted).size(), 3u);
  EXPECT_TRUE(index.complete());
  index.Unmatch(3);             // not in it
  index.Unmatch(4);             // no chunk
  index.Unmatch(~uint32_t{0});  // no chunk
  EXPECT_TRUE(index.complete());
  index.Unmatch(2);
  index.Unmatch(2);
  EXPECT_FALSE(index.complete());
  EXPECT_EQ(index.Match(Image({1, 2})), Matches{});
  EXPECT_EQ(index.Match(Image({5, 7})), (Matches{{2, 1}}));
  EXPECT_TRUE(index.complete());
}

TEST(ChunkIndexTest, AsASlowSearchFindsIt) {
  std::mt19937 random(1);
  for (int round = 0; round < 3'000; ++round) {
    const auto image = [&] {
      std::vector<uint32_t> contents(1 + random() % 12);
      for (uint32_t& content : contents) content = random() % 9;
      return Image(contents, random() % 2 * 512);
    };
    const auto length = [](const ImageRecord& of, uint32_t i) {
      return i + 1 < of.chunks.size() ? of.chunk_size
                                      : of.stamp.size - i * of.chunk_size;
    };
    const ImageRecord wanted = image();
    std::vector<uint32_t> missing;
    std::set<uint32_t> open;
    for (uint32_t i = 0; i < wanted.chunks.size(); ++i) {
      if (random() % 4 == 0) continue;
      missing.push_back(i);
      if (!wanted.chunks[i].zero) open.insert(i);
    }
    std::shuffle(missing.begin(), missing.end(), random);
    ChunkIndex index(wanted, missing);
    for (int step = 0; step < 5; ++step) {
      if (random() % 3 == 0) {
        const uint32_t back = random() % 13;
        index.Unmatch(back);
        if (std::count(missing.begin(), missing.end(), back) > 0 &&
            !wanted.chunks[back].zero) {
          open.insert(back);
        }
      }
      const ImageRecord candidate = image();
      Matches expected;
      for (uint32_t i : std::set<uint32_t>(open)) {
        for (uint32_t j = 0; j < candidate.chunks.size(); ++j) {
          if (candidate.chunks[j] == wanted.chunks[i] &&
              length(wanted, i) == length(candidate, j)) {
            expected.push_back({i, j});
            open.erase(i);
            break;
          }
        }
      }
      ASSERT_EQ(index.Match(candidate), expected) << round;
      ASSERT_EQ(index.complete(), open.empty()) << round;
    }
  }
}

TEST(ChunkIndexTest, LargestManifestsAreSoonDone) {
  // All alike is the worst case for a search that walks equal ones.
  for (bool alike : {false, true}) {
    std::vector<uint32_t> contents(kMaxChunks);
    for (uint32_t i = 0; i < kMaxChunks; ++i) contents[i] = alike ? 1 : i + 1;
    const ImageRecord wanted = Image(contents);
    std::reverse(contents.begin(), contents.end());
    const ImageRecord candidate = Image(contents);
    const ImageRecord other = Image({77'777, 88'888});
    ChunkIndex index(wanted, AllOf(wanted));
    EXPECT_EQ(index.Match(other), Matches{});
    const Matches matches = index.Match(candidate);
    ASSERT_EQ(matches.size(), kMaxChunks);
    for (uint32_t i = 0; i < kMaxChunks; ++i) {
      ASSERT_EQ(matches[i], (ChunkMatch{i, alike ? 0 : kMaxChunks - 1 - i}));
    }
    EXPECT_TRUE(index.complete());
    for (uint32_t i = 0; i < kMaxChunks; ++i) index.Unmatch(i);
    EXPECT_EQ(index.Match(wanted).size(), kMaxChunks);
  }
}

TEST(ChunkIndexDeathTest, AMissingChunkThatIsNone) {
  const ImageRecord wanted = Image({1});
  EXPECT_DEATH(ChunkIndex(wanted, {1}), "chunk < wanted.chunks.size");
}

}  // namespace
}  // namespace bim::transfer
