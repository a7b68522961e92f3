#include "pkg/compress/decoder.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/unit/compress/tools.h"

namespace bim::compress {
namespace {

using base::Code;
using base::Status;
using test::AsBytes;
using test::DecodeAll;
using test::Decoded;
using test::kNoLimit;
using test::MixedBytes;
using test::RandomBytes;
using test::Workshop;

constexpr Encoding kAll[] = {Encoding::kGzip, Encoding::kXz, Encoding::kZstd};

std::string Tool(Encoding encoding) {
  return std::string(EncodingName(encoding)) + " -c" +
         (encoding == Encoding::kZstd ? " -q" : "");
}

void ExpectRefused(const Decoded& decoded, std::string_view text) {
  EXPECT_EQ(decoded.status.code(), Code::kFailedPrecondition)
      << decoded.status.ToString();
  EXPECT_NE(decoded.status.message().find(text), std::string::npos)
      << decoded.status.message() << " lacks: " << text;
}

class DecoderTest : public ::testing::TestWithParam<Encoding> {
 protected:
  std::string Encoded(std::string_view content, std::string options = "") {
    return shop_.Filter(Tool(GetParam()) + " " + options, content);
  }
  std::string Name() const { return std::string(EncodingName(GetParam())); }
  Workshop shop_;
};

INSTANTIATE_TEST_SUITE_P(All, DecoderTest, ::testing::ValuesIn(kAll),
                         [](const auto& info) {
                           return std::string(EncodingName(info.param));
                         });

TEST_P(DecoderTest, SizesAndPieces) {
  for (size_t size : {0, 1, 2, 100, 4095, 4096, 65'536, 262'143, 262'144,
                      262'145, 524'288, 1'000'000, 3'333'333}) {
    for (const std::string& content :
         {MixedBytes(size, 1), RandomBytes(size, 2), std::string(size, '\0')}) {
      const std::string encoded = Encoded(content);
      for (size_t piece :
           {size_t{1}, size_t{7}, size_t{16'384}, encoded.size()}) {
        // Byte by byte only where it is soon done.
        if (encoded.size() / piece > 300'000) continue;
        const Decoded decoded = DecodeAll(GetParam(), encoded, piece);
        BIM_ASSERT_OK(decoded.status);
        ASSERT_TRUE(decoded.bytes == content) << size << " by " << piece;
      }
    }
  }
}

TEST_P(DecoderTest, EmptyPiecesDoNothing) {
  const std::string encoded = Encoded("hello");
  const auto decoder = MakeDecoder(GetParam(), kNoLimit);
  std::string out;
  const auto output = [&](std::span<const std::byte> bytes) {
    out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return base::OkStatus();
  };
  for (char c : encoded) {
    BIM_EXPECT_OK(decoder->Feed({}, output));
    BIM_EXPECT_OK(decoder->Feed(AsBytes({&c, 1}), output));
  }
  BIM_EXPECT_OK(decoder->Feed({}, output));
  BIM_EXPECT_OK(decoder->Finish(output));
  EXPECT_EQ(out, "hello");
}

TEST_P(DecoderTest, ManyMembersAreOneStream) {
  std::string content, encoded;
  for (uint32_t i = 0; i < 20; ++i) {
    const std::string part = MixedBytes(i * 17'000, i);
    content += part;
    encoded += Encoded(part, "-" + std::to_string(1 + i % 9));
  }
  for (size_t piece : {size_t{1}, size_t{1000}, encoded.size()}) {
    const Decoded decoded = DecodeAll(GetParam(), encoded, piece);
    BIM_ASSERT_OK(decoded.status);
    EXPECT_TRUE(decoded.bytes == content) << piece;
  }
}

TEST_P(DecoderTest, EmptyInput) {
  ExpectRefused(DecodeAll(GetParam(), "", 1),
                "the " + Name() + " stream is empty");
}

TEST_P(DecoderTest, WrongMagic) {
  const std::string qcow2("QFI\xfb\0\0\0\3 and more of it", 23);
  ExpectRefused(DecodeAll(GetParam(), qcow2, 1), "this is no " + Name());
  ExpectRefused(DecodeAll(GetParam(), qcow2, 100), "found 51 46 49 fb");
  ExpectRefused(DecodeAll(GetParam(), std::string(100, '\0'), 3),
                "found 00 00 00 00 00 00");
  for (Encoding other : kAll) {
    if (other == GetParam()) continue;
    ExpectRefused(DecodeAll(GetParam(), shop_.Filter(Tool(other), "x"), 5),
                  "which is " + std::string(EncodingName(other)));
  }
}

TEST_P(DecoderTest, CutOffAtEveryByteOfASmallOne) {
  const std::string content = MixedBytes(9'000, 4);
  const std::string encoded = Encoded(content);
  for (size_t length = 1; length < encoded.size(); ++length) {
    const Decoded decoded =
        DecodeAll(GetParam(), encoded.substr(0, length), 1 + length % 500);
    ExpectRefused(decoded, "ends in the middle");
    ASSERT_TRUE(content.starts_with(decoded.bytes));
  }
}

TEST_P(DecoderTest, CutOffInALargeOne) {
  const std::string content = MixedBytes(2'000'000, 5);
  const std::string encoded = Encoded(content);
  for (size_t i = 0; i < 60; ++i) {
    const size_t length = 1 + i * (encoded.size() - 2) / 59;
    const Decoded decoded =
        DecodeAll(GetParam(), encoded.substr(0, length), 65'536);
    ExpectRefused(decoded, "ends in the middle");
    ASSERT_TRUE(content.starts_with(decoded.bytes));
  }
}

TEST_P(DecoderTest, CutOffInTheSecondMember) {
  const std::string first = Encoded("first"), second = Encoded("second");
  for (size_t length = 1; length < second.size(); ++length) {
    ExpectRefused(DecodeAll(GetParam(), first + second.substr(0, length), 3),
                  "ends in the middle");
  }
}

// zstd's command adds a checksum; gzip and xz always have one. What is not
// covered by it (gzip's time and name, zstd's unused bit) may change, the
// content not.
TEST_P(DecoderTest, EveryFlippedBitIsNoticedOrHarmless) {
  const std::string content = MixedBytes(2'500, 6);
  const std::string encoded = Encoded(content);
  size_t unnoticed = 0;
  for (size_t at = 0; at < encoded.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = encoded;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      const Decoded decoded = DecodeAll(GetParam(), flipped, 700);
      if (!decoded.status.ok()) {
        ASSERT_EQ(decoded.status.code(), Code::kFailedPrecondition);
        continue;
      }
      ++unnoticed;
      ASSERT_EQ(decoded.bytes, content) << at << " " << bit;
    }
  }
  EXPECT_LT(unnoticed, 100u);
}

TEST_P(DecoderTest, FlippedBytesOfALargeOne) {
  const std::string content = MixedBytes(1'000'000, 7);
  const std::string encoded = Encoded(content);
  std::mt19937 random(7);
  for (int i = 0; i < 100; ++i) {
    std::string flipped = encoded;
    const size_t at = 20 + random() % (flipped.size() - 20);
    flipped[at] = static_cast<char>(flipped[at] ^ (1 + random() % 255));
    const Decoded decoded = DecodeAll(GetParam(), flipped, 65'536);
    ASSERT_FALSE(decoded.status.ok()) << at;
    ASSERT_LE(decoded.bytes.size(), content.size() + 64 * 1024 * 1024);
  }
}

TEST_P(DecoderTest, NoiseBehindAValidHead) {
  const std::string head = Encoded("hello").substr(0, 6);
  for (uint32_t seed = 0; seed < 500; ++seed) {
    const Decoded decoded =
        DecodeAll(GetParam(), head + RandomBytes(3'000, seed), 1'000);
    ASSERT_EQ(decoded.status.code(), Code::kFailedPrecondition);
  }
}

TEST_P(DecoderTest, OtherBytesBehindTheEnd) {
  const std::string encoded = Encoded("hello");
  for (const std::string& garbage :
       {std::string("garbage, some of it"), std::string("\x01"),
        std::string("\0\0\0\1", 4), std::string("\x1e\xb5\x2f\xfd", 4)}) {
    for (size_t piece : {1, 5, 1000}) {
      const Decoded decoded = DecodeAll(GetParam(), encoded + garbage, piece);
      EXPECT_EQ(decoded.status.code(), Code::kFailedPrecondition)
          << decoded.status.ToString();
    }
  }
}

TEST_P(DecoderTest, LimitIsExact) {
  for (size_t size : {1, 1000, 262'144, 262'145, 1'000'000}) {
    const std::string content = MixedBytes(size, 8);
    const std::string encoded = Encoded(content);
    for (size_t piece : {size_t{97}, encoded.size()}) {
      const Decoded fits = DecodeAll(GetParam(), encoded, piece, size);
      BIM_EXPECT_OK(fits.status);
      EXPECT_TRUE(fits.bytes == content);
      const Decoded over = DecodeAll(GetParam(), encoded, piece, size - 1);
      ExpectRefused(over, "decodes to more than the " +
                              std::to_string(size - 1) +
                              " bytes that are allowed");
      EXPECT_TRUE(over.bytes == content.substr(0, size - 1));
    }
  }
  BIM_EXPECT_OK(DecodeAll(GetParam(), Encoded(""), 10, 0).status);
}

TEST_P(DecoderTest, AFailureOfTheOutputEndsIt) {
  const std::string encoded = Encoded(MixedBytes(1'000'000, 9));
  int calls = 0;
  const auto output = [&](std::span<const std::byte>) {
    return ++calls == 2 ? base::ResourceExhaustedError("disk full")
                        : base::OkStatus();
  };
  const auto decoder = MakeDecoder(GetParam(), kNoLimit);
  const Status status = decoder->Feed(AsBytes(encoded), output);
  EXPECT_EQ(status, base::ResourceExhaustedError("disk full"));
  EXPECT_EQ(calls, 2);

  // The last piece comes with Finish.
  calls = 1;
  const auto small = MakeDecoder(GetParam(), kNoLimit);
  BIM_EXPECT_OK(small->Feed(AsBytes(Encoded("x")), output));
  EXPECT_EQ(small->Finish(output).code(), Code::kResourceExhausted);
}

// --- bombs

// In KiB; 0 when it cannot be told.
long StatusField(const char* field) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(field)) {
      return std::strtol(line.c_str() + std::string(field).size() + 1, nullptr,
                         10);
    }
  }
  return 0;
}

TEST_P(DecoderTest, ABombIsRefusedAtTheLimit) {
  // "5" resets the high-water mark (proc(5)).
  std::ofstream("/proc/self/clear_refs") << "5";
  const long before = StatusField("VmRSS:");
  const uint64_t limit = 300'000'001;
  FILE* pipe = ::popen(
      ("head -c 10G /dev/zero | " + Tool(GetParam()) + " -1").c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  const auto decoder = MakeDecoder(GetParam(), limit);
  uint64_t out = 0;
  bool zeros = true;
  const auto output = [&](std::span<const std::byte> bytes) {
    out += bytes.size();
    zeros = zeros && bytes.front() == std::byte{0} &&
            std::equal(bytes.begin() + 1, bytes.end(), bytes.begin());
    return base::OkStatus();
  };
  Status status;
  std::vector<std::byte> buffer(4096);
  while (status.ok()) {
    const size_t count = ::fread(buffer.data(), 1, buffer.size(), pipe);
    if (count == 0) break;
    status = decoder->Feed(std::span(buffer).first(count), output);
  }
  ::pclose(pipe);
  EXPECT_EQ(status.code(), Code::kFailedPrecondition);
  EXPECT_NE(status.message().find("more than the 300000001 bytes"),
            std::string::npos)
      << status.message();
  EXPECT_EQ(out, limit);
  EXPECT_EQ(decoder->decoded_bytes(), limit);
  EXPECT_TRUE(zeros);
  EXPECT_LT(decoder->encoded_bytes(), limit / 100);
  const long peak = StatusField("VmHWM:");
  if (before > 0 && peak > 0) {
    EXPECT_LT(peak - before, 32 * 1024);
  }
}

// --- what only one format has

class ToolTest : public ::testing::Test {
 protected:
  void ExpectDecodes(Encoding encoding, const std::string& encoded,
                     std::string_view content) {
    for (size_t piece : {size_t{1'000}, size_t{1} << 20}) {
      const Decoded decoded = DecodeAll(encoding, encoded, piece);
      BIM_EXPECT_OK(decoded.status);
      EXPECT_TRUE(decoded.bytes == content) << decoded.bytes.size();
    }
  }
  Workshop shop_;
  const std::string content_ = MixedBytes(1'500'000, 11);
};
using GzipTest = ToolTest;
using XzTest = ToolTest;
using ZstdTest = ToolTest;

TEST_F(GzipTest, WithNameTimeAndEveryLevel) {
  shop_.Put("image.raw", content_);
  for (int level = 1; level <= 9; ++level) {
    ExpectDecodes(
        Encoding::kGzip,
        shop_.Output("gzip -N -c -" + std::to_string(level) + " image.raw"),
        content_);
  }
}

TEST_F(GzipTest, OptionalHeaderFields) {
  // FTEXT, FHCRC left out, FEXTRA, FNAME, FCOMMENT (RFC 1952 2.3.1).
  const std::string plain = shop_.Filter("gzip -n -c", "hello");
  std::string header = plain.substr(0, 10);
  header[3] = 0x1 | 0x4 | 0x8 | 0x10;
  header += std::string("\x03\0abc", 5) + std::string("name\0", 5) +
            std::string("comment\0", 8);
  ExpectDecodes(Encoding::kGzip, header + plain.substr(10), "hello");
  // Reserved bits.
  header[3] = static_cast<char>(header[3] | 0x20);
  EXPECT_FALSE(
      DecodeAll(Encoding::kGzip, header + plain.substr(10), 9).status.ok());
}

TEST_F(GzipTest, ZerosBehindTheEndArePadding) {
  const std::string encoded = shop_.Filter("gzip -c", "hello");
  for (size_t zeros : {1, 2, 3, 4, 511, 512, 100'000}) {
    ExpectDecodes(Encoding::kGzip, encoded + std::string(zeros, '\0'), "hello");
  }
  // Nothing follows padding, as gzip reads it.
  ExpectRefused(DecodeAll(Encoding::kGzip,
                          encoded + std::string(512, '\0') + encoded, 100),
                "there are other bytes (1f 8b");
  ExpectRefused(DecodeAll(Encoding::kGzip, encoded + "\x1f\x8c", 100),
                "damaged");
}

TEST_F(GzipTest, WrongLengthOrChecksum) {
  std::string encoded = shop_.Filter("gzip -c", "hello");
  encoded[encoded.size() - 1] ^= 1;
  ExpectRefused(DecodeAll(Encoding::kGzip, encoded, 100), "length");
  encoded[encoded.size() - 1] ^= 1;
  encoded[encoded.size() - 5] ^= 1;
  ExpectRefused(DecodeAll(Encoding::kGzip, encoded, 100), "data check");
}

TEST_F(XzTest, LevelsChecksBlocksAndFilters) {
  for (const char* options :
       {"-0", "-9", "-9e", "--check=none", "--check=crc32", "--check=crc64",
        "--check=sha256", "--block-size=100000", "-T2 --block-size=500000",
        "--x86 --lzma2=dict=1MiB", "--delta=dist=4 --lzma2"}) {
    SCOPED_TRACE(options);
    ExpectDecodes(Encoding::kXz,
                  shop_.Filter("xz -c " + std::string(options), content_),
                  content_);
  }
}

TEST_F(XzTest, PaddingBetweenAndBehindStreams) {
  const std::string hello = shop_.Filter("xz -c", "hello");
  const std::string world = shop_.Filter("xz -c", " world");
  for (size_t zeros : {4, 8, 512, 100'000}) {
    ExpectDecodes(Encoding::kXz, hello + std::string(zeros, '\0'), "hello");
    ExpectDecodes(
        Encoding::kXz,
        hello + std::string(zeros, '\0') + world + std::string(zeros, '\0'),
        "hello world");
  }
  for (size_t zeros : {1, 2, 3, 5, 511}) {
    const Decoded decoded =
        DecodeAll(Encoding::kXz, hello + std::string(zeros, '\0'), 64);
    EXPECT_EQ(decoded.status.code(), Code::kFailedPrecondition) << zeros;
  }
}

TEST_F(XzTest, MemoryIsBounded) {
  // 64 MiB (-9) and 128 MiB are allowed, 192 and 1536 MiB are not.
  ExpectDecodes(Encoding::kXz, shop_.Filter("xz -c -9", "hello"), "hello");
  ExpectDecodes(Encoding::kXz,
                shop_.Filter("xz -c -M 4GiB --lzma2=preset=0,dict=128MiB", "x"),
                "x");
  ExpectRefused(
      DecodeAll(Encoding::kXz,
                shop_.Filter("xz -c -M 4GiB --lzma2=preset=0,dict=192MiB", "x"),
                9),
      "MiB of memory to decode, at most 160 MiB");
  ExpectRefused(
      DecodeAll(
          Encoding::kXz,
          shop_.Filter("xz -c -M 16GiB --lzma2=preset=0,dict=1536MiB", "x"),
          999),
      "MiB of memory to decode, at most 160 MiB");
}

TEST_F(XzTest, OldLzmaFilesAreNone) {
  ExpectRefused(
      DecodeAll(Encoding::kXz, shop_.Filter("xz -c --format=lzma", "hello"), 9),
      "this is no xz stream");
}

TEST_F(ZstdTest, LevelsAndOptions) {
  for (const char* options :
       {"-1", "-3", "-19", "--fast=5", "--no-check", "--long=27",
        "--long=27 -19", "--no-content-size", "-T2 -B512K", "--rsyncable -T1",
        "--stream-size=1500000"}) {
    SCOPED_TRACE(options);
    ExpectDecodes(Encoding::kZstd,
                  shop_.Filter("zstd -q -c " + std::string(options), content_),
                  content_);
  }
}

TEST_F(ZstdTest, AWindowOf128MiBIsInUse) {
  // A repetition that only so large a window reaches.
  const std::string block = RandomBytes(1'000'000, 12);
  const std::string content = block + std::string(120'000'000, '\0') + block;
  const std::string encoded = shop_.Filter("zstd -q -c -1 --long=27", content);
  EXPECT_LT(encoded.size(), 1'500'000u);
  const Decoded decoded = DecodeAll(Encoding::kZstd, encoded, 1 << 20);
  BIM_EXPECT_OK(decoded.status);
  EXPECT_TRUE(decoded.bytes == content) << decoded.bytes.size();
}

TEST_F(ZstdTest, LargerWindowsAreRefused) {
  for (int log : {28, 29, 30, 31}) {
    // From a pipe: with a known small size zstd takes a small window.
    shop_.Put("image", "some bytes");
    const std::string encoded =
        shop_.Output("cat image | zstd -q -c -1 --long=" + std::to_string(log));
    for (size_t piece : {1, 100}) {
      ExpectRefused(DecodeAll(Encoding::kZstd, encoded, piece),
                    "window of 128 MiB that is allowed");
    }
  }
}

TEST_F(ZstdTest, SkippableFrames) {
  const std::string hello = shop_.Filter("zstd -q -c", "hello");
  std::string content, encoded;
  for (int kind = 0; kind < 16; ++kind) {
    for (uint32_t size : {0u, 1u, 300u}) {
      encoded += static_cast<char>(0x50 + kind);
      encoded += "\x2a\x4d\x18";
      for (int i = 0; i < 4; ++i) {
        encoded += static_cast<char>(size >> (8 * i) & 0xff);
      }
      encoded += RandomBytes(size, size);
      if (kind % 3 == 1) {
        encoded += hello;
        content += "hello";
      }
    }
  }
  EXPECT_EQ(EncodingOfHead(AsBytes(encoded)), Encoding::kZstd);
  ExpectDecodes(Encoding::kZstd, encoded, content);
  const Decoded decoded = DecodeAll(Encoding::kZstd, encoded, 1);
  BIM_EXPECT_OK(decoded.status);
  EXPECT_EQ(decoded.bytes, content);
  ExpectRefused(
      DecodeAll(Encoding::kZstd, encoded.substr(0, encoded.size() - 1), 11),
      "ends in the middle");
}

TEST_F(ZstdTest, FormatsFromBefore2016AreNotRead) {
  const std::string hello = shop_.Filter("zstd -q -c", "hello");
  for (char version : {0x22, 0x23, 0x24, 0x25, 0x26, 0x27}) {
    const std::string old =
        std::string(1, version) + "\xb5\x2f\xfd" + RandomBytes(100, version);
    ExpectRefused(DecodeAll(Encoding::kZstd, old, 100), "this is no zstd");
    ExpectRefused(DecodeAll(Encoding::kZstd, hello + old, 100),
                  "behind the end of the zstd stream");
  }
}

TEST_F(ZstdTest, ADictionaryIsMissing) {
  for (int i = 0; i < 200; ++i) {
    shop_.Put("sample" + std::to_string(i), MixedBytes(2'000, i));
  }
  shop_.Output("zstd -q --train sample* -o dictionary 2> /dev/null");
  const std::string encoded = shop_.Output("zstd -q -c -D dictionary sample7");
  ExpectRefused(DecodeAll(Encoding::kZstd, encoded, 100), "Dictionary");
}

// --- names

TEST(EncodingTest, OfName) {
  for (const char* name : {"gzip", "x-gzip", "GZip", "X-GZIP"}) {
    EXPECT_EQ(EncodingOfName(name), Encoding::kGzip) << name;
  }
  EXPECT_EQ(EncodingOfName("zstd"), Encoding::kZstd);
  EXPECT_EQ(EncodingOfName("ZSTD"), Encoding::kZstd);
  EXPECT_EQ(EncodingOfName("xz"), Encoding::kXz);
  for (const char* name :
       {"", "identity", "br", "deflate", "compress", "gzip ", "gz", "x-xz"}) {
    EXPECT_FALSE(EncodingOfName(name)) << name;
  }
  for (Encoding encoding : kAll) {
    EXPECT_EQ(EncodingOfName(EncodingName(encoding)), encoding);
  }
}

TEST(EncodingTest, OfHead) {
  Workshop shop;
  for (Encoding encoding : kAll) {
    const std::string encoded = shop.Filter(Tool(encoding), "hello");
    for (size_t length = 0; length < encoded.size(); ++length) {
      const auto found = EncodingOfHead(AsBytes(encoded).first(length));
      if (length < 6) {
        EXPECT_FALSE(found) << length;
      } else {
        EXPECT_EQ(found, encoding) << length;
      }
    }
  }
  for (const std::string& head :
       {std::string(600, '\0'), std::string("QFI\xfb\0\0\0\3", 8),
        std::string("\x1f\x8b\x07\0\0\0", 6),
        std::string("\xfd"
                    "7zXZ\1"),
        std::string("\x27\xb5\x2f\xfd\0\0", 6),
        std::string("\x60\x2a\x4d\x18\0\0", 6)}) {
    EXPECT_FALSE(EncodingOfHead(AsBytes(head)));
  }
}

}  // namespace
}  // namespace bim::compress
