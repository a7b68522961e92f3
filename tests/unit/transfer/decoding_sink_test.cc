#include "pkg/transfer/decoding_sink.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pkg/compress/encoder.h"
#include "tests/unit/compress/tools.h"

namespace bim::transfer {
namespace {

using base::Code;
using base::Status;
using compress::Encoding;
using compress::test::AsBytes;
using compress::test::MixedBytes;
using compress::test::Workshop;
using ::testing::HasSubstr;
using By = DecodingSink::By;

constexpr Encoding kAll[] = {Encoding::kGzip, Encoding::kXz, Encoding::kZstd};

// Remembers what came.
class Recorder : public SourceSink {
 public:
  Status OnHead(const SourceHead& got) override {
    ++heads;
    head = got;
    bytes.clear();
    return refuse_head;
  }
  Status OnData(std::span<const std::byte> data) override {
    EXPECT_EQ(heads, 1);
    EXPECT_FALSE(data.empty());
    if (bytes.size() + data.size() > most) {
      return base::ResourceExhaustedError("full");
    }
    bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
    return base::OkStatus();
  }
  Status OnZeros(uint64_t count) override {
    zeros += count;
    bytes.append(count, '\0');
    return base::OkStatus();
  }
  int heads = 0;
  SourceHead head;
  std::string bytes;
  uint64_t zeros = 0;
  uint64_t most = UINT64_MAX;
  Status refuse_head;
};

SourceHead HeadOf(std::string_view encoded, std::string encoding = "") {
  SourceHead head;
  head.size = encoded.size();
  head.validator = "\"v\"";
  head.content_type = "application/gzip";
  head.ranges = true;
  head.content_encoding = std::move(encoding);
  return head;
}

// Both, one behind the other, as a transfer has them.
class DecodingSinkTest : public ::testing::Test {
 protected:
  std::string Encode(Encoding encoding, std::string_view content) {
    return shop_.Filter(std::string(compress::EncodingName(encoding)) + " -c" +
                            (encoding == Encoding::kZstd ? " -q" : ""),
                        content);
  }
  Status Feed(std::string_view encoded, std::string encoding, size_t piece,
              uint64_t max_output = UINT64_MAX) {
    return FeedHead(HeadOf(encoded, std::move(encoding)), encoded, piece,
                    max_output);
  }
  Status FeedHead(const SourceHead& head, std::string_view encoded,
                  size_t piece, uint64_t max_output = UINT64_MAX) {
    recorder_.heads = 0;
    recorder_.bytes.clear();
    DecodingSink by_magic(By::kMagic, recorder_, max_output, &progress_);
    DecodingSink by_header(By::kHeader, by_magic, max_output, &progress_);
    BIM_RETURN_IF_ERROR(by_header.OnHead(head));
    for (size_t at = 0; at < encoded.size(); at += piece) {
      BIM_RETURN_IF_ERROR(by_header.OnData(AsBytes(encoded.substr(at, piece))));
    }
    BIM_RETURN_IF_ERROR(by_header.Finish());
    return by_magic.Finish();
  }
  void ExpectDecoded(std::string_view content) {
    EXPECT_EQ(recorder_.heads, 1);
    EXPECT_TRUE(recorder_.bytes == content) << recorder_.bytes.size();
    // Nothing of it is known, nor can it be resumed.
    EXPECT_FALSE(recorder_.head.size);
    EXPECT_EQ(recorder_.head.validator, "");
    EXPECT_EQ(recorder_.head.content_type, "");
    EXPECT_EQ(recorder_.head.content_encoding, "");
    EXPECT_FALSE(recorder_.head.ranges);
  }

  Workshop shop_;
  Recorder recorder_;
  Progress progress_;
};

TEST_F(DecodingSinkTest, ByHeaderAndByMagicInPieces) {
  const std::string content = MixedBytes(200'000, 1);
  for (const Encoding encoding : kAll) {
    const std::string name(compress::EncodingName(encoding));
    const std::string encoded = Encode(encoding, content);
    for (const bool header : {false, true}) {
      for (const size_t piece : {size_t{1}, size_t{5}, size_t{6}, size_t{7},
                                 size_t{4096}, encoded.size()}) {
        SCOPED_TRACE(name + " " + std::to_string(piece));
        BIM_ASSERT_OK(Feed(encoded, header ? name : "", piece));
        ExpectDecoded(content);
        EXPECT_EQ(progress_.encoding(), name);
        EXPECT_EQ(progress_.encoded_size, encoded.size());
      }
    }
  }
}

TEST_F(DecodingSinkTest, BothNested) {
  const std::string content = MixedBytes(100'000, 2);
  for (const Encoding inner : kAll) {
    for (const Encoding outer : kAll) {
      const std::string once = Encode(inner, content);
      const std::string encoded = Encode(outer, once);
      for (const size_t piece : {size_t{1}, size_t{1000}, encoded.size()}) {
        BIM_ASSERT_OK(
            Feed(encoded, std::string(compress::EncodingName(outer)), piece));
        ExpectDecoded(content);
        EXPECT_EQ(progress_.encoded_size, encoded.size());
      }
      // Without the header only one of them is what it is: the other is the
      // content, for the one behind to judge.
      BIM_ASSERT_OK(Feed(encoded, "", 1000));
      EXPECT_TRUE(recorder_.bytes == once);
    }
  }
}

TEST_F(DecodingSinkTest, WhatIsNotEncodedPassesUntouched) {
  for (const size_t size : {0, 1, 5, 6, 7, 100, 4096, 70'000}) {
    const std::string content = compress::test::RandomBytes(size, 77);
    for (const char* encoding : {"", "identity"}) {
      for (const size_t piece : {1, 6, 7, 100'000}) {
        SCOPED_TRACE(testing::Message() << size << " " << piece);
        BIM_ASSERT_OK(Feed(content, encoding, piece));
        EXPECT_EQ(recorder_.heads, 1);
        EXPECT_EQ(recorder_.bytes, content);
        EXPECT_EQ(recorder_.head.size, size);
        EXPECT_EQ(recorder_.head.validator, "\"v\"");
        EXPECT_EQ(recorder_.head.content_type, "application/gzip");
        EXPECT_EQ(recorder_.head.content_encoding, "");
        EXPECT_TRUE(recorder_.head.ranges);
        EXPECT_EQ(progress_.encoding(), "");
        EXPECT_EQ(progress_.encoded_size, 0u);
      }
    }
  }
}

TEST_F(DecodingSinkTest, AResumedHeadPassesAtOnce) {
  // In the middle of a file there is no magic.
  const std::string bytes = Encode(Encoding::kGzip, "hello");
  SourceHead head = HeadOf(bytes);
  head.offset = 512;
  for (const size_t piece : {1, 1000}) {
    BIM_ASSERT_OK(FeedHead(head, bytes, piece));
    EXPECT_EQ(recorder_.bytes, bytes);
    EXPECT_EQ(recorder_.head.offset, 512u);
    EXPECT_EQ(recorder_.head.validator, "\"v\"");
  }
}

TEST_F(DecodingSinkTest, TruncatedAnywhere) {
  const std::string content = MixedBytes(3000, 3);
  for (const Encoding encoding : kAll) {
    const std::string encoded = Encode(encoding, content);
    const std::string name(compress::EncodingName(encoding));
    for (size_t size = 0; size < encoded.size(); size += 1 + size / 20) {
      SCOPED_TRACE(name + " " + std::to_string(size));
      const std::string_view part = std::string_view(encoded).substr(0, size);
      const Status by_header = Feed(part, name, 100);
      EXPECT_EQ(by_header.code(), Code::kFailedPrecondition)
          << by_header.ToString();
      const Status by_magic = Feed(part, "", 100);
      // Too short to tell: it is what it is.
      if (size < 6) {
        BIM_EXPECT_OK(by_magic);
        EXPECT_EQ(recorder_.bytes, part);
      } else {
        EXPECT_EQ(by_magic.code(), Code::kFailedPrecondition);
      }
    }
  }
}

TEST_F(DecodingSinkTest, BombsEndAtTheLimit) {
  const std::string content(20 << 20, '\0');
  for (const Encoding encoding : kAll) {
    const std::string name(compress::EncodingName(encoding));
    const std::string encoded = Encode(encoding, content);
    EXPECT_LT(encoded.size(), 100'000u);
    for (const bool header : {false, true}) {
      for (const uint64_t limit :
           {uint64_t{1}, uint64_t{1 << 20}, uint64_t{content.size() - 1}}) {
        const Status status = Feed(encoded, header ? name : "", 4096, limit);
        EXPECT_EQ(status.code(), Code::kFailedPrecondition);
        EXPECT_THAT(
            std::string(status.message()),
            HasSubstr("decodes to more than the " + std::to_string(limit)));
        EXPECT_LE(recorder_.bytes.size(), limit);
      }
      BIM_EXPECT_OK(Feed(encoded, header ? name : "", 4096, content.size()));
      EXPECT_EQ(recorder_.bytes.size(), content.size());
    }
    // A bomb within a bomb.
    const std::string nested = Encode(Encoding::kGzip, encoded);
    EXPECT_EQ(Feed(nested, "gzip", 4096, 1 << 20).code(),
              Code::kFailedPrecondition);
    EXPECT_LE(recorder_.bytes.size(), 1u << 20);
  }
}

TEST_F(DecodingSinkTest, UnknownEncodingsAreRefusedByName) {
  for (const char* encoding : {"br", "gzip, br", "compress", "x\n\x01"}) {
    const Status status = Feed("hello", encoding, 100);
    EXPECT_EQ(status.code(), Code::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("encoded as '"));
    EXPECT_EQ(std::string(status.message()).find('\n'), std::string::npos);
    EXPECT_EQ(recorder_.heads, 0);
  }
}

TEST_F(DecodingSinkTest, ContentThatIsNotAsTheHeaderSays) {
  for (const char* encoding : {"gzip", "xz", "zstd"}) {
    EXPECT_EQ(Feed(std::string(10'000, 'x'), encoding, 100).code(),
              Code::kFailedPrecondition);
    EXPECT_EQ(recorder_.bytes, "");
  }
}

TEST_F(DecodingSinkTest, RunsOfZerosStayRuns) {
  for (const uint64_t first : {1, 5, 6, 7, 10'000'000}) {
    recorder_ = Recorder();
    DecodingSink sink(By::kMagic, recorder_, UINT64_MAX, nullptr);
    BIM_ASSERT_OK(sink.OnHead(HeadOf("")));
    BIM_ASSERT_OK(sink.OnZeros(0));
    BIM_ASSERT_OK(sink.OnZeros(first));
    BIM_ASSERT_OK(sink.OnZeros(3));
    BIM_ASSERT_OK(sink.OnData(AsBytes("end")));
    BIM_ASSERT_OK(sink.Finish());
    EXPECT_FALSE(sink.decoding());
    EXPECT_TRUE(recorder_.bytes == std::string(first + 3, '\0') + "end");
    EXPECT_GE(recorder_.zeros + 6, first);
  }
}

TEST_F(DecodingSinkTest, ZerosOfAnEncodedSourceAreEncodedBytes) {
  // gzip may be padded with zeros.
  const std::string content = MixedBytes(1000, 4);
  const std::string encoded = Encode(Encoding::kGzip, content);
  DecodingSink sink(By::kMagic, recorder_, UINT64_MAX, nullptr);
  BIM_ASSERT_OK(sink.OnHead(HeadOf(encoded)));
  BIM_ASSERT_OK(sink.OnData(AsBytes(encoded)));
  BIM_ASSERT_OK(sink.OnZeros(1'000'000));
  BIM_ASSERT_OK(sink.Finish());
  EXPECT_TRUE(sink.decoding());
  EXPECT_EQ(recorder_.bytes, content);
  EXPECT_EQ(recorder_.zeros, 0u);
}

TEST_F(DecodingSinkTest, FailuresOfTheNextOneComeBack) {
  const std::string content = MixedBytes(3'000'000, 5);
  for (const Encoding encoding : kAll) {
    const std::string encoded = Encode(encoding, content);
    recorder_.most = 300'000;
    EXPECT_EQ(Feed(encoded, "", 10'000).code(), Code::kResourceExhausted);
    recorder_.most = UINT64_MAX;
    recorder_.refuse_head = base::AbortedError("no");
    EXPECT_EQ(Feed(encoded, "", 10'000).code(), Code::kAborted);
    EXPECT_EQ(recorder_.bytes, "");
    recorder_.refuse_head = base::OkStatus();
  }
}

TEST_F(DecodingSinkTest, EachReadBeginsAnew) {
  // Broken off within the magic, then within the stream, then another content.
  const std::string content = MixedBytes(50'000, 6);
  const std::string encoded = Encode(Encoding::kXz, content);
  DecodingSink sink(By::kMagic, recorder_, UINT64_MAX, &progress_);
  for (const size_t part : {size_t{3}, size_t{1000}, encoded.size()}) {
    recorder_.heads = 0;
    BIM_ASSERT_OK(sink.OnHead(HeadOf(encoded)));
    BIM_ASSERT_OK(
        sink.OnData(AsBytes(std::string_view(encoded).substr(0, part))));
  }
  BIM_ASSERT_OK(sink.Finish());
  EXPECT_EQ(recorder_.bytes, content);
  recorder_.heads = 0;
  BIM_ASSERT_OK(sink.OnHead(HeadOf("plain text")));
  BIM_ASSERT_OK(sink.OnData(AsBytes("plain text")));
  BIM_ASSERT_OK(sink.Finish());
  EXPECT_FALSE(sink.decoding());
  EXPECT_EQ(recorder_.bytes, "plain text");
}

}  // namespace
}  // namespace bim::transfer
