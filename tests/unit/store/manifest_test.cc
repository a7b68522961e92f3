#include "pkg/store/manifest.h"

#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <random>

#include "tests/unit/store/scratch.h"

namespace bim::store {
namespace {

using base::Code;

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

uint64_t CountOf(uint64_t size, uint64_t chunk) {
  return size / chunk + (size % chunk != 0 ? 1 : 0);
}

TEST(ChunkSizeForTest, Boundaries) {
  EXPECT_EQ(ChunkSizeFor(0), kMinChunkSize);
  EXPECT_EQ(ChunkSizeFor(1), kMinChunkSize);
  const uint64_t full = kMinChunkSize * kMaxChunks;  // 16 GiB
  EXPECT_EQ(full, uint64_t{16} << 30);
  EXPECT_EQ(ChunkSizeFor(full - 1), kMinChunkSize);
  EXPECT_EQ(ChunkSizeFor(full), kMinChunkSize);
  EXPECT_EQ(ChunkSizeFor(full + 1), kMinChunkSize * 2);
  EXPECT_EQ(ChunkSizeFor(full * 2), kMinChunkSize * 2);
  EXPECT_EQ(ChunkSizeFor(full * 2 + 512), kMinChunkSize * 4);
  EXPECT_EQ(ChunkSizeFor(kMax), uint64_t{1} << 48);
}

TEST(ChunkSizeForTest, SmallestPowerOfTwoThatFitsAroundEveryBoundary) {
  for (int bits = 0; bits < 64; ++bits) {
    for (int64_t delta = -513; delta <= 513; delta += 1) {
      const uint64_t size =
          (uint64_t{1} << bits) + static_cast<uint64_t>(delta);
      const uint64_t chunk = ChunkSizeFor(size);
      ASSERT_TRUE(std::has_single_bit(chunk)) << size;
      ASSERT_GE(chunk, kMinChunkSize) << size;
      ASSERT_LE(CountOf(size, chunk), kMaxChunks) << size;
      ASSERT_EQ(CountOf(size, chunk), ChunkCount(size, chunk)) << size;
      if (chunk > kMinChunkSize) {
        ASSERT_GT(CountOf(size, chunk / 2), kMaxChunks) << size;
      }
    }
  }
}

TEST(ChunkCountTest, Vectors) {
  EXPECT_EQ(ChunkCount(0, kMinChunkSize), 0u);
  EXPECT_EQ(ChunkCount(1, kMinChunkSize), 1u);
  EXPECT_EQ(ChunkCount(kMinChunkSize, kMinChunkSize), 1u);
  EXPECT_EQ(ChunkCount(kMinChunkSize + 1, kMinChunkSize), 2u);
  EXPECT_EQ(ChunkCount(kMinChunkSize * kMaxChunks, kMinChunkSize), kMaxChunks);
}

std::vector<Chunk> SomeChunks(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<Chunk> chunks(count);
  for (Chunk& chunk : chunks) {
    chunk.zero = random() % 3 == 0;
    if (chunk.zero) continue;
    for (std::byte& b : chunk.sha256) b = static_cast<std::byte>(random());
  }
  return chunks;
}

TEST(ChunksCodecTest, RoundTrips) {
  for (size_t count : {0, 1, 2, 3, 100, 65536}) {
    const auto chunks = SomeChunks(count, static_cast<uint32_t>(count));
    const std::string bytes = EncodeChunks(chunks);
    EXPECT_EQ(bytes.size(), count * 33);
    const auto back = DecodeChunks(bytes);
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(*back, chunks);
  }
}

TEST(ChunksCodecTest, EveryOtherLengthIsRefused) {
  const std::string bytes = EncodeChunks(SomeChunks(3, 1));
  for (size_t length = 0; length <= bytes.size(); ++length) {
    const auto back = DecodeChunks(std::string_view(bytes).substr(0, length));
    EXPECT_EQ(back.ok(), length % 33 == 0) << length;
    if (!back.ok()) {
      EXPECT_EQ(back.status().code(), Code::kDataLoss);
    }
  }
}

TEST(ChunksCodecTest, EveryOtherMarkIsRefused) {
  for (int mark = 0; mark < 256; ++mark) {
    std::string bytes = EncodeChunks(SomeChunks(2, 1));
    bytes[33] = static_cast<char>(mark);
    const auto back = DecodeChunks(bytes);
    EXPECT_EQ(back.ok(), mark <= 1) << mark;
  }
}

TEST(ManifestTest, Check) {
  BIM_EXPECT_OK(CheckChunks(512, kMinChunkSize, 1));
  BIM_EXPECT_OK(CheckChunks(kMinChunkSize, kMinChunkSize, 1));
  BIM_EXPECT_OK(CheckChunks(kMinChunkSize + 512, kMinChunkSize, 2));
  BIM_EXPECT_OK(CheckChunks(512, kUnknownSizeChunk, 1));
  BIM_EXPECT_OK(
      CheckChunks(kMinChunkSize * kMaxChunks, kMinChunkSize, kMaxChunks));
  for (const auto& [size, chunk, count] :
       std::initializer_list<std::tuple<uint64_t, uint64_t, size_t>>{
           {512, 0, 1},
           {512, kMinChunkSize / 2, 1},
           {512, kMinChunkSize * 3, 1},
           {512, kMinChunkSize, 0},
           {512, kMinChunkSize, 2},
           {kMinChunkSize + 512, kMinChunkSize, 1},
           {kMinChunkSize * kMaxChunks + 512, kMinChunkSize, kMaxChunks + 1},
           {kMax, kMinChunkSize, 1}}) {
    EXPECT_EQ(CheckChunks(size, chunk, count).code(), Code::kDataLoss)
        << size << " " << chunk << " " << count;
  }
}

}  // namespace
}  // namespace bim::store
