#include "pkg/compress/encoder.h"

#include <gtest/gtest.h>

#include "tests/unit/compress/tools.h"

namespace bim::compress {
namespace {

using test::AsBytes;
using test::DecodeAll;
using test::Decoded;
using test::MixedBytes;
using test::RandomBytes;
using test::Workshop;

std::string EncodeAll(std::string_view data, int level, size_t piece) {
  std::string out;
  const auto encoder = MakeZstdEncoder(level);
  size_t fed = 0;
  while (!data.empty()) {
    const size_t take = std::min(piece, data.size());
    BIM_EXPECT_OK(encoder->Feed(AsBytes(data.substr(0, take)), out));
    data.remove_prefix(take);
    fed += take;
    EXPECT_LE(out.size(), fed + fed / 100 + 1024);
  }
  const size_t before = out.size();
  BIM_EXPECT_OK(encoder->Finish(out));
  EXPECT_LE(out.size() - before, size_t{1} << 20);
  return out;
}

TEST(CompressZstdTest, RoundTrips) {
  for (int level : {1, 3, 9, 19}) {
    for (size_t size : {100, 4096, 131'072, 131'073, 2'000'000}) {
      const std::string content = MixedBytes(size, 2);
      const std::string encoded = CompressZstd(AsBytes(content), level);
      if (encoded.empty()) {
        EXPECT_LT(size, 5'000u);
        continue;
      }
      EXPECT_LT(encoded.size(), content.size());
      const Decoded decoded = DecodeAll(Encoding::kZstd, encoded, 65'536);
      BIM_EXPECT_OK(decoded.status);
      EXPECT_TRUE(decoded.bytes == content) << level << " " << size;
    }
  }
}

TEST(CompressZstdTest, EmptyWhenNotSmaller) {
  for (size_t size : {0, 1, 2, 3, 10, 1000, 262'144}) {
    EXPECT_EQ(CompressZstd(AsBytes(RandomBytes(size, 1)), 3), "") << size;
  }
  for (size_t size = 0; size < 300; ++size) {
    const std::string content(size, 'x');
    const std::string encoded = CompressZstd(AsBytes(content), 1);
    if (encoded.empty()) {
      EXPECT_LT(size, 40u);
      continue;
    }
    EXPECT_LT(encoded.size(), size);
    EXPECT_EQ(DecodeAll(Encoding::kZstd, encoded, 7).bytes, content);
  }
}

TEST(CompressZstdTest, Zeros) {
  EXPECT_LT(CompressZstd(AsBytes(std::string(4 << 20, '\0')), 1).size(), 300u);
}

TEST(CompressZstdTest, LevelsOutsideAreTheNearest) {
  const std::string content = MixedBytes(50'000, 3);
  EXPECT_EQ(CompressZstd(AsBytes(content), -5),
            CompressZstd(AsBytes(content), 1));
  EXPECT_EQ(CompressZstd(AsBytes(content), 0),
            CompressZstd(AsBytes(content), 1));
  EXPECT_EQ(CompressZstd(AsBytes(content), 99),
            CompressZstd(AsBytes(content), 19));
}

TEST(ZstdEncoderTest, SizesAndPieces) {
  for (int level : {1, 3, 19}) {
    for (size_t size : {0, 1, 100, 131'072, 262'145, 1'500'000}) {
      const std::string content = MixedBytes(size, size);
      for (size_t piece : {size_t{1}, size_t{4'000}, size_t{1} << 22}) {
        if (size / piece > 300'000) continue;
        const std::string encoded = EncodeAll(content, level, piece);
        const Decoded decoded = DecodeAll(Encoding::kZstd, encoded, 10'000);
        BIM_EXPECT_OK(decoded.status);
        EXPECT_TRUE(decoded.bytes == content) << size << " by " << piece;
      }
    }
  }
}

TEST(ZstdEncoderTest, TheToolReadsItAndFindsTheChecksum) {
  Workshop shop;
  const std::string content = MixedBytes(700'000, 4);
  const std::string encoded = EncodeAll(content, 3, 50'000);
  EXPECT_TRUE(shop.Filter("zstd -q -d -c", encoded) == content);
  shop.Put("file.zst", encoded);
  const std::string list = shop.Output("zstd -q -lv file.zst");
  EXPECT_NE(list.find("XXH64"), std::string::npos) << list;
}

TEST(ZstdEncoderTest, NoiseHardlyGrows) {
  const std::string content = RandomBytes(1'000'000, 5);
  EXPECT_LT(EncodeAll(content, 3, 65'536).size(), content.size() + 1'000);
}

TEST(ZstdEncoderTest, AGigabyteOfZerosCostsNextToNothing) {
  const auto encoder = MakeZstdEncoder(3);
  const std::string zeros(1 << 20, '\0');
  std::string out;
  for (int i = 0; i < 1024; ++i) {
    BIM_ASSERT_OK(encoder->Feed(AsBytes(zeros), out));
  }
  BIM_ASSERT_OK(encoder->Finish(out));
  EXPECT_LT(out.size(), 64u * 1024);
  const auto decoder = MakeDecoder(Encoding::kZstd, uint64_t{1} << 30);
  const auto output = [](std::span<const std::byte>) {
    return base::OkStatus();
  };
  BIM_EXPECT_OK(decoder->Feed(AsBytes(out), output));
  BIM_EXPECT_OK(decoder->Finish(output));
  EXPECT_EQ(decoder->decoded_bytes(), uint64_t{1} << 30);
}

TEST(ZstdEncoderTest, EveryFlippedBitIsNoticedOrHarmless) {
  const std::string content = MixedBytes(1'500, 6);
  const std::string encoded = EncodeAll(content, 3, 100);
  for (size_t at = 0; at < encoded.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = encoded;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      const Decoded decoded = DecodeAll(Encoding::kZstd, flipped, 999);
      if (!decoded.status.ok()) continue;
      ASSERT_EQ(decoded.bytes, content) << at << " " << bit;
    }
  }
}

TEST(GzipEncoderTest, RoundTripsAndTheToolReadsIt) {
  for (int level : {1, 6, 9}) {
    for (size_t size : {0, 1, 4096, 131'073, 3'000'000}) {
      const std::string content = MixedBytes(size, 2);
      const auto encoder = MakeGzipEncoder(level);
      std::string out;
      for (size_t at = 0; at < size; at += 100'000) {
        BIM_EXPECT_OK(encoder->Feed(
            AsBytes(std::string_view(content).substr(at, 100'000)), out));
      }
      BIM_EXPECT_OK(encoder->Finish(out));
      const Decoded decoded = DecodeAll(Encoding::kGzip, out, 65'536);
      BIM_EXPECT_OK(decoded.status);
      EXPECT_TRUE(decoded.bytes == content) << level << " " << size;
    }
  }
  const std::string content = MixedBytes(500'000, 3);
  const auto encoder = MakeGzipEncoder(1);
  std::string out;
  BIM_EXPECT_OK(encoder->Feed(AsBytes(content), out));
  BIM_EXPECT_OK(encoder->Finish(out));
  Workshop shop;
  EXPECT_TRUE(shop.Filter("gzip -d -c", out) == content);
}

}  // namespace
}  // namespace bim::compress
