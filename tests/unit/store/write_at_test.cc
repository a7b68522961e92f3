// Bytes given in any order, from several threads, also again.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <stop_token>
#include <thread>

#include "pkg/store/ingest.h"
#include "pkg/store/publish.h"
#include "tests/unit/store/scratch.h"

namespace bim::store {
namespace {

using base::Code;
using base::Status;
using test::AsBytes;
using test::Exists;
using test::ReadAll;
using test::ScratchDisk;
using test::Sha256;
using test::Sha512;
using ::testing::HasSubstr;

const ImageKey kKey{"debian", "u-1"};
constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * 1024;
constexpr uint64_t kGiB = 1024 * kMiB;
constexpr uint64_t kChunk = kMinChunkSize;

bool AllZero(std::string_view text) {
  return text.find_first_not_of('\0') == std::string_view::npos;
}

// Random, with runs of zeros that begin and end at multiples of 512.
std::string Content(size_t size, uint32_t seed, size_t longest_run) {
  std::string content = test::RandomBytes(size, seed);
  std::mt19937 random(seed);
  for (size_t at = 4096; at < size;) {
    const size_t run =
        std::min<size_t>(size - at, random() % longest_run / 512 * 512);
    if (random() % 2 == 0) std::fill_n(content.begin() + at, run, '\0');
    at += run + 512;
  }
  return content;
}

struct Piece {
  uint64_t begin = 0;
  uint64_t end = 0;
};

// Covers the file in pieces of all sizes, in random order; some come again, and
// some overlap others.
std::vector<Piece> Pieces(uint64_t size, uint32_t seed, uint64_t longest) {
  std::mt19937 random(seed);
  std::vector<Piece> pieces;
  for (uint64_t at = 0; at < size;) {
    const uint64_t length = (1 + random() % (longest / 512)) * 512;
    const uint64_t end = std::min(size, at + length);
    const uint64_t before = std::min<uint64_t>(at, random() % 64 * 512);
    pieces.push_back({random() % 3 == 0 ? at - before : at, end});
    if (random() % 5 == 0) pieces.push_back(pieces.back());
    at = end;
  }
  std::shuffle(pieces.begin(), pieces.end(), random);
  return pieces;
}

IngestOptions WithReference(std::string_view content, bool trust) {
  auto record = std::make_shared<ImageRecord>();
  record->key = kKey;
  record->stamp.size = content.size();
  record->sha512 = Sha512(content);
  record->chunk_size = kChunk;
  for (size_t at = 0; at < content.size(); at += kChunk) {
    const std::string_view piece = content.substr(at, kChunk);
    Chunk chunk;
    chunk.zero = AllZero(piece);
    if (!chunk.zero) {
      const base::Digest digest = Sha256(piece);
      std::copy(digest.bytes().begin(), digest.bytes().end(),
                chunk.sha256.begin());
    }
    record->chunks.push_back(chunk);
  }
  record->chunk_count = static_cast<uint32_t>(record->chunks.size());
  IngestOptions options;
  options.reference = record;
  options.trust_reference = trust;
  return options;
}

class WriteAtTest : public ::testing::Test {
 protected:
  std::unique_ptr<Ingest> Open(IngestOptions options = {}) {
    auto ingest = Ingest::Open(scratch_.disk, kKey, std::move(options));
    BIM_CHECK(ingest.ok());
    return *std::move(ingest);
  }
  std::unique_ptr<Ingest> Start(uint64_t size, IngestOptions options = {}) {
    auto ingest = Open(std::move(options));
    BIM_EXPECT_OK(ingest->Begin(size, "v"));
    return ingest;
  }
  static Status Give(Ingest& ingest, std::string_view content, uint64_t begin,
                     uint64_t end) {
    return ingest.WriteAt(begin, AsBytes(content.substr(begin, end - begin)),
                          {});
  }
  // Zeros as a hole, or not.
  static Status GiveEither(Ingest& ingest, std::string_view content,
                           const Piece& piece, bool hole) {
    if (hole && AllZero(content.substr(piece.begin, piece.end - piece.begin))) {
      return ingest.HoleAt(piece.begin, piece.end, {});
    }
    return Give(ingest, content, piece.begin, piece.end);
  }
  static void GiveAll(Ingest& ingest, std::string_view content,
                      const std::vector<Piece>& pieces, size_t threads) {
    std::atomic<size_t> next{0};
    std::vector<std::thread> running;
    for (size_t i = 0; i < threads; ++i) {
      running.emplace_back([&] {
        for (size_t at; (at = next++) < pieces.size();) {
          BIM_EXPECT_OK(GiveEither(ingest, content, pieces[at], at % 2 == 0));
        }
      });
    }
    for (std::thread& thread : running) thread.join();
  }
  static uint64_t MissingBytes(Ingest& ingest) {
    uint64_t bytes = 0;
    for (const io::Extent& range : ingest.Missing()) {
      bytes += range.end - range.begin;
    }
    return bytes;
  }
  void ExpectCommit(std::unique_ptr<Ingest> ingest, std::string_view content) {
    EXPECT_EQ(ingest->stored_bytes(), content.size());
    EXPECT_TRUE(ingest->Missing().empty());
    auto record = ingest->Commit({});
    ASSERT_TRUE(record.ok()) << record.status().ToString();
    EXPECT_EQ(record->sha512, Sha512(content));
    EXPECT_TRUE(ReadAll(File()) == content);
    const auto read = ReadRecord(scratch_.disk->root(), kKey, true);
    ASSERT_TRUE(read.ok());
    EXPECT_EQ(read->chunks, WithReference(content, false).reference->chunks);
  }
  void Remove() { BIM_ASSERT_OK(RemoveImage(*scratch_.disk, kKey, false)); }

  std::string File() { return scratch_.Path(DataFile(kKey)); }
  std::string Temp() { return scratch_.Path(TempFile(kKey)); }

  ScratchDisk scratch_;
};

TEST_F(WriteAtTest, AnyOrderOneThread) {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    // The last chunk is whole in one of them.
    const std::string content =
        Content(seed == 0 ? 2 * kMiB : 3 * kMiB + 512 * (1 + seed * 37), seed,
                seed % 2 == 0 ? kMiB : 20 * kKiB);
    auto ingest = Start(content.size());
    GiveAll(*ingest, content,
            Pieces(content.size(), seed, seed % 3 == 0 ? 8 * kKiB : kMiB), 1);
    ExpectCommit(std::move(ingest), content);
    Remove();
    if (HasFailure()) return;
  }
}

TEST_F(WriteAtTest, FourThreads) {
  for (uint32_t seed = 20; seed < 32; ++seed) {
    const std::string content =
        Content(6 * kMiB + 512 * seed, seed, seed % 2 == 0 ? kMiB : 20 * kKiB);
    IngestOptions options;
    if (seed % 4 == 1) options = WithReference(content, false);
    if (seed % 4 == 3) options = WithReference(content, true);
    options.expect_sha512 = Sha512(content);
    auto ingest = Start(content.size(), options);
    GiveAll(*ingest, content,
            Pieces(content.size(), seed, seed % 3 == 0 ? 8 * kKiB : kMiB), 4);
    ExpectCommit(std::move(ingest), content);
    Remove();
    if (HasFailure()) return;
  }
}

// Several threads bring the very same bytes at the same time: a chunk is taken
// once.
TEST_F(WriteAtTest, AllBringTheSame) {
  const std::string content = Content(2 * kMiB + 512, 40, 64 * kKiB);
  for (int round = 0; round < 8; ++round) {
    auto ingest = Start(content.size());
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        for (uint64_t at = 0; at < content.size(); at += 96 * kKiB) {
          BIM_EXPECT_OK(
              Give(*ingest, content, at,
                   std::min<uint64_t>(content.size(), at + 96 * kKiB)));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ExpectCommit(std::move(ingest), content);
    Remove();
    if (HasFailure()) return;
  }
}

TEST_F(WriteAtTest, WhatWasNeverGivenIsToldAndNotPublished) {
  const std::string content = Content(kMiB + 512, 41, 20 * kKiB);
  for (const uint64_t gap :
       {uint64_t{0}, uint64_t{4096}, kChunk - 512, kChunk, kMiB}) {
    auto ingest = Start(content.size());
    EXPECT_EQ(ingest->stored_bytes(), 0u);
    BIM_ASSERT_OK(Give(*ingest, content, 0, gap));
    BIM_ASSERT_OK(Give(*ingest, content, gap + 512, content.size()));
    BIM_ASSERT_OK(Give(*ingest, content, gap + 512, content.size()));
    EXPECT_EQ(ingest->stored_bytes(), content.size() - 512);
    const auto missing = ingest->Missing();
    ASSERT_EQ(missing.size(), 1u);
    EXPECT_EQ(missing[0].begin, gap);
    EXPECT_EQ(missing[0].end, gap + 512);
    EXPECT_FALSE(ingest->HasChunk(static_cast<uint32_t>(gap / kChunk)));
    auto refused = ingest->Commit({});
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.status().code(), Code::kUnavailable);
    EXPECT_THAT(
        refused.status().message(),
        HasSubstr("only " + std::to_string(content.size() - 512) + " of " +
                  std::to_string(content.size()) + " bytes came"));
    EXPECT_FALSE(Exists(File()));
    // And with it, it can.
    BIM_ASSERT_OK(Give(*ingest, content, gap, gap + 512));
    ExpectCommit(std::move(ingest), content);
    Remove();
  }
}

TEST_F(WriteAtTest, NothingGiven) {
  auto ingest = Start(kMiB);
  EXPECT_EQ(ingest->Commit({}).status().code(), Code::kUnavailable);
  BIM_ASSERT_OK(ingest->WriteAt(0, {}, {}));
  BIM_ASSERT_OK(ingest->HoleAt(512, 512, {}));
  EXPECT_EQ(MissingBytes(*ingest), kMiB);
  EXPECT_EQ(ingest->Commit({}).status().code(), Code::kUnavailable);
}

TEST_F(WriteAtTest, WhereNothingMayBeGiven) {
  const std::string content = test::RandomBytes(kMiB + 512, 42);
  auto ingest = Start(content.size());
  const auto at = [&](uint64_t offset, size_t count) {
    return ingest
        ->WriteAt(offset, AsBytes(std::string_view(content).substr(0, count)),
                  {})
        .code();
  };
  EXPECT_EQ(at(kMiB, 1024), Code::kOutOfRange);
  EXPECT_EQ(at(kMiB + 512, 512), Code::kOutOfRange);
  EXPECT_EQ(at(UINT64_MAX - 511, 1024), Code::kOutOfRange);
  EXPECT_EQ(at(100, 512), Code::kInvalidArgument);
  EXPECT_EQ(at(0, 100), Code::kInvalidArgument);
  EXPECT_EQ(ingest->HoleAt(kMiB, kMiB + 1024, {}).code(), Code::kOutOfRange);
  EXPECT_EQ(ingest->HoleAt(1024, 512, {}).code(), Code::kOutOfRange);
  EXPECT_EQ(ingest->HoleAt(1, 512, {}).code(), Code::kInvalidArgument);
  EXPECT_EQ(ingest->stored_bytes(), 0u);
  EXPECT_EQ(MissingBytes(*ingest), content.size());
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(ingest->WriteAt(0, AsBytes(content), stop.get_token()).code(),
            Code::kCancelled);
  EXPECT_EQ(ingest->HoleAt(0, 512, stop.get_token()).code(), Code::kCancelled);
  BIM_ASSERT_OK(Give(*ingest, content, 0, content.size()));
  ExpectCommit(std::move(ingest), content);
}

TEST_F(WriteAtTest, ACompleteChunkOnlyIsCompared) {
  std::string content = Content(2 * kChunk, 43, 4096);
  std::fill_n(content.begin() + kChunk / 2, kChunk / 2, '\0');
  auto ingest = Start(content.size());
  BIM_ASSERT_OK(Give(*ingest, content, 0, kChunk));
  // The same again is fine, in other pieces, and across its end.
  BIM_ASSERT_OK(Give(*ingest, content, 512, kChunk + 1024));
  BIM_ASSERT_OK(ingest->HoleAt(kChunk / 2, kChunk, {}));
  BIM_ASSERT_OK(ingest->HoleAt(kChunk / 2 + 512, kChunk - 512, {}));
  EXPECT_EQ(ingest->stored_bytes(), kChunk + 1024);
  std::string other = content;
  other[777] ^= 1;
  const Status differs = Give(*ingest, other, 512, 1024);
  EXPECT_EQ(differs.code(), Code::kDataLoss);
  EXPECT_THAT(differs.message(), HasSubstr("512"));
  EXPECT_EQ(ingest->HoleAt(0, 512, {}).code(), Code::kDataLoss);
  EXPECT_EQ(ingest->HoleAt(kChunk / 2 - 512, kChunk, {}).code(),
            Code::kDataLoss);
  other[kChunk - 1] = 'x';
  EXPECT_EQ(Give(*ingest, other, kChunk - 512, kChunk).code(), Code::kDataLoss);
  EXPECT_EQ(ingest->stored_bytes(), kChunk + 1024);
  BIM_ASSERT_OK(Give(*ingest, content, kChunk, content.size()));
  ExpectCommit(std::move(ingest), content);
}

TEST_F(WriteAtTest, WhatCameLastCountsWhileAChunkIsIncomplete) {
  const std::string content = Content(2 * kChunk, 44, 16 * kKiB);
  const std::string other = test::RandomBytes(content.size(), 45);
  // Data over data, zeros (as data and as a hole) over data, data over a hole.
  for (int way = 0; way < 4; ++way) {
    std::string expected = content;
    auto ingest = Start(content.size());
    BIM_ASSERT_OK(Give(*ingest, way == 3 ? content : other, 512, kChunk));
    if (way == 0) BIM_ASSERT_OK(Give(*ingest, content, 512, kChunk));
    if (way == 1 || way == 2) {
      std::fill_n(expected.begin() + 512, kChunk - 512, '\0');
      if (way == 1) BIM_ASSERT_OK(ingest->HoleAt(512, kChunk, {}));
      if (way == 2) BIM_ASSERT_OK(Give(*ingest, expected, 512, kChunk));
    }
    if (way == 3) {
      BIM_ASSERT_OK(ingest->HoleAt(512, kChunk, {}));
      BIM_ASSERT_OK(Give(*ingest, content, 512, kChunk));
    }
    EXPECT_EQ(ingest->stored_bytes(), kChunk - 512);
    BIM_ASSERT_OK(Give(*ingest, content, 0, 512));
    BIM_ASSERT_OK(Give(*ingest, content, kChunk, content.size()));
    ExpectCommit(std::move(ingest), expected);
    Remove();
    if (HasFailure()) return;
  }
}

// Random bytes of random places, what was given last wins: as in memory.
TEST_F(WriteAtTest, AnythingOverAnything) {
  for (uint32_t seed = 50; seed < 60; ++seed) {
    std::mt19937 random(seed);
    std::string expected(kChunk + 8 * 512, '\0');
    auto ingest = Start(expected.size());
    for (int step = 0; step < 60; ++step) {
      // The first block of each chunk is kept back.
      const uint64_t blocks = expected.size() / 512;
      uint64_t begin = random() % blocks;
      uint64_t end = begin + 1 + random() % std::min<uint64_t>(40, blocks);
      end = std::min(end, blocks);
      if (begin == 0) begin = 1;
      const uint64_t second = kChunk / 512;
      if (begin <= second && end > second) {
        if (begin == second)
          ++begin;
        else
          end = second;
      }
      if (begin >= end) continue;
      const uint64_t length = (end - begin) * 512;
      const int kind = static_cast<int>(random() % 3);
      std::string bytes(length, '\0');
      if (kind > 0) bytes = Content(length, random(), 8192);
      expected.replace(begin * 512, length, bytes);
      if (kind == 0) {
        BIM_ASSERT_OK(ingest->HoleAt(begin * 512, end * 512, {}));
      } else {
        BIM_ASSERT_OK(Give(*ingest, expected, begin * 512, end * 512));
      }
    }
    for (const io::Extent& gap : ingest->Missing()) {
      BIM_ASSERT_OK(Give(*ingest, expected, gap.begin, gap.end));
    }
    ExpectCommit(std::move(ingest), expected);
    Remove();
    if (HasFailure()) return;
  }
}

TEST_F(WriteAtTest, ZerosUseNoSpace) {
  std::string content(4 * kMiB, '\0');
  content[0] = 'x';
  content[3 * kMiB] = 'y';
  auto ingest = Start(content.size());
  for (uint64_t at = content.size(); at > 0; at -= 64 * kKiB) {
    BIM_ASSERT_OK(Give(*ingest, content, at - 64 * kKiB, at));
  }
  ExpectCommit(std::move(ingest), content);
  EXPECT_LE(test::AllocatedBytes(File()), 16 * kKiB);
  Remove();
  // Zeros over data give the space back.
  auto again = Start(content.size());
  const std::string other = test::RandomBytes(kChunk - 512, 46);
  BIM_ASSERT_OK(again->WriteAt(512, AsBytes(other), {}));
  EXPECT_GE(test::AllocatedBytes(Temp()), kChunk - 4096);
  BIM_ASSERT_OK(Give(*again, content, 512, content.size()));
  BIM_ASSERT_OK(Give(*again, content, 0, 512));
  ExpectCommit(std::move(again), content);
  EXPECT_LE(test::AllocatedBytes(File()), 16 * kKiB);
}

TEST_F(WriteAtTest, HugeHolesCostNothing) {
  constexpr uint64_t kSize = 64 * kGiB;
  IngestOptions options;
  auto ingest = Start(kSize, options);
  const uint64_t chunk = ingest->chunk_size();
  const std::string data = test::RandomBytes(4096, 47);
  const auto before = std::chrono::steady_clock::now();
  BIM_ASSERT_OK(ingest->HoleAt(4096, kSize - 512, {}));
  EXPECT_EQ(ingest->stored_bytes(), kSize - 4096 - 512);
  EXPECT_FALSE(ingest->HasChunk(0));
  EXPECT_TRUE(ingest->HasChunk(1));
  EXPECT_FALSE(
      ingest->HasChunk(static_cast<uint32_t>(ChunkCount(kSize, chunk) - 1)));
  BIM_ASSERT_OK(ingest->HoleAt(4096, kSize - 512, {}));  // again
  BIM_ASSERT_OK(ingest->WriteAt(0, AsBytes(data), {}));
  const auto took = std::chrono::steady_clock::now() - before;
  EXPECT_LT(took, std::chrono::seconds(5));
  EXPECT_EQ(ingest->WriteAt(kGiB, AsBytes(data), {}).code(), Code::kDataLoss);
  EXPECT_EQ(MissingBytes(*ingest), 512u);
  BIM_ASSERT_OK(ingest->Discard());
}

TEST_F(WriteAtTest, HolesAlone) {
  const std::string content(kMiB + 512, '\0');
  auto ingest = Start(content.size());
  BIM_ASSERT_OK(ingest->HoleAt(kMiB, content.size(), {}));
  BIM_ASSERT_OK(ingest->HoleAt(512, kMiB, {}));
  BIM_ASSERT_OK(ingest->HoleAt(0, 1024, {}));
  ExpectCommit(std::move(ingest), content);
  EXPECT_EQ(test::AllocatedBytes(File()), 0u);
}

TEST_F(WriteAtTest, TooManyPieces) {
  constexpr uint64_t kPieces = 262'144;
  auto ingest = Start(kPieces * 1024 + 4096);
  for (uint64_t i = 0; i < kPieces; ++i) {
    ASSERT_TRUE(ingest->HoleAt(i * 1024 + 512, (i + 1) * 1024, {}).ok());
  }
  EXPECT_EQ(
      ingest->HoleAt(kPieces * 1024 + 512, kPieces * 1024 + 1024, {}).code(),
      Code::kResourceExhausted);
  EXPECT_EQ(ingest->stored_bytes(), kPieces * 512);
  // What joins pieces is welcome.
  BIM_ASSERT_OK(ingest->HoleAt(0, 512, {}));
  BIM_ASSERT_OK(ingest->HoleAt(1024, 1536, {}));
  BIM_ASSERT_OK(
      ingest->HoleAt(kPieces * 1024 + 512, kPieces * 1024 + 1024, {}));
  BIM_ASSERT_OK(ingest->Discard());
}

TEST_F(WriteAtTest, DiffersFromTheReference) {
  const std::string content = Content(4 * kChunk, 60, 16 * kKiB);
  for (const bool trust : {true, false}) {
    auto ingest = Start(content.size(), WithReference(content, trust));
    std::string other = content;
    other[kChunk + 5] ^= 1;
    BIM_ASSERT_OK(Give(*ingest, other, 0, 2 * kChunk - 512));
    const Status differs = Give(*ingest, other, 2 * kChunk - 512, 2 * kChunk);
    EXPECT_EQ(differs.code(), Code::kDataLoss);
    EXPECT_THAT(differs.message(), HasSubstr("chunk 1"));
    EXPECT_EQ(ingest->stored_bytes(), kChunk);
    EXPECT_EQ(ingest->HoleAt(2 * kChunk, 3 * kChunk, {}).code(),
              Code::kDataLoss);
    const auto missing = ingest->Missing();
    ASSERT_EQ(missing.size(), 1u);
    EXPECT_EQ(missing[0].begin, kChunk);
    EXPECT_EQ(ingest->Commit({}).status().code(), Code::kUnavailable);
    // Zeros are not taken for what lies there.
    for (uint64_t at = kChunk; at < content.size(); at += 8192) {
      BIM_ASSERT_OK(Give(*ingest, content, at, at + 8192));
    }
    ExpectCommit(std::move(ingest), content);
    Remove();
  }
}

TEST_F(WriteAtTest, WrongChecksumPublishesNothing) {
  const std::string content = Content(kMiB, 61, 16 * kKiB);
  IngestOptions options;
  options.expect_sha512 = Sha512("other");
  auto ingest = Start(content.size(), options);
  GiveAll(*ingest, content, Pieces(content.size(), 61, 64 * kKiB), 2);
  EXPECT_EQ(ingest->Commit({}).status().code(), Code::kFailedPrecondition);
  EXPECT_FALSE(Exists(File()));
  EXPECT_FALSE(Exists(Temp()));
}

TEST_F(WriteAtTest, GoesOnInAnotherProcess) {
  const std::string content = Content(8 * kChunk + 512, 62, 16 * kKiB);
  auto ingest = Start(content.size());
  BIM_ASSERT_OK(Give(*ingest, content, 5 * kChunk + 512, 7 * kChunk + 512));
  BIM_ASSERT_OK(Give(*ingest, content, kChunk, 3 * kChunk));
  EXPECT_EQ(ingest->stored_bytes(), 4 * kChunk);
  ingest.reset();
  scratch_.Restart();
  auto again = Open();
  EXPECT_EQ(again->partial_validator(), "v");
  BIM_ASSERT_OK(again->Restore({}));
  // Whole chunks are kept.
  EXPECT_EQ(again->stored_bytes(), 3 * kChunk);
  EXPECT_EQ(MissingBytes(*again), 5 * kChunk + 512);
  std::string other = content;
  other[2 * kChunk] ^= 1;
  EXPECT_EQ(Give(*again, other, 2 * kChunk, 2 * kChunk + 512).code(),
            Code::kDataLoss);
  // What was incomplete is not there any more: other bytes may come.
  GiveAll(*again, content, Pieces(content.size(), 62, 96 * kKiB), 4);
  ExpectCommit(std::move(again), content);
}

TEST_F(WriteAtTest, HolesGoOnInAnotherProcess) {
  const std::string content(8 * kChunk, '\0');
  auto ingest = Start(content.size());
  BIM_ASSERT_OK(ingest->HoleAt(kChunk + 512, 5 * kChunk + 512, {}));
  ingest.reset();
  auto again = Open();
  BIM_ASSERT_OK(again->Restore({}));
  EXPECT_EQ(again->stored_bytes(), 3 * kChunk);
  BIM_ASSERT_OK(again->HoleAt(0, content.size(), {}));
  ExpectCommit(std::move(again), content);
}

TEST_F(WriteAtTest, BeginForgetsWhatWasGiven) {
  const std::string content = Content(3 * kChunk, 63, 16 * kKiB);
  auto ingest = Start(8 * kChunk);
  BIM_ASSERT_OK(ingest->HoleAt(0, 2 * kChunk + 512, {}));
  BIM_ASSERT_OK(ingest->Begin(content.size(), "w"));
  EXPECT_EQ(ingest->stored_bytes(), 0u);
  EXPECT_EQ(MissingBytes(*ingest), content.size());
  BIM_ASSERT_OK(ingest->Append(AsBytes(content), {}));
  BIM_ASSERT_OK(ingest->Settle());
  ExpectCommit(std::move(ingest), content);
}

TEST_F(WriteAtTest, MixedUseAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto ingest = Start(kMiB);
  BIM_ASSERT_OK(ingest->HoleAt(0, 512, {}));
  EXPECT_DEATH((void)ingest->Write(512, kMiB), "loose_");
}

// --- the digests of what is there

// --- whole chunks, which are hashed from memory

// How many bytes this process has read so far.
uint64_t ReadBytes() {
  const std::string text = ReadAll("/proc/self/io");
  return std::strtoull(text.c_str() + text.find("rchar: ") + 7, nullptr, 10);
}

TEST_F(WriteAtTest, WholeChunksInOrderAreNotReadBack) {
  const std::string content = test::RandomBytes(32 * kMiB, 80);
  IngestOptions options;
  options.expect_sha512 = Sha512(content);
  auto ingest = Start(content.size(), options);
  const uint64_t before = ReadBytes();
  for (uint64_t at = 0; at < content.size(); at += kMiB) {
    BIM_ASSERT_OK(Give(*ingest, content, at, at + kMiB));
    EXPECT_EQ(ingest->stored_bytes(), at + kMiB);
  }
  BIM_ASSERT_OK(ingest->Settle());
  EXPECT_LT(ReadBytes() - before, content.size() / 8);
  ExpectCommit(std::move(ingest), content);
}

TEST_F(WriteAtTest, WholeChunksThatDifferFromTheReference) {
  std::string content = Content(4 * kChunk + 512, 81, 16 * kKiB);
  content.back() = 'x';  // no chunk of zeros
  for (const bool trust : {true, false}) {
    auto ingest = Start(content.size(), WithReference(content, trust));
    std::string other = content;
    other[2 * kChunk] ^= 1;
    other[4 * kChunk] ^= 1;
    const Status differs = Give(*ingest, other, 0, content.size());
    EXPECT_EQ(differs.code(), Code::kDataLoss);
    EXPECT_THAT(differs.message(), HasSubstr("chunk 2"));
    EXPECT_EQ(ingest->stored_bytes(), 2 * kChunk);
    EXPECT_EQ(Give(*ingest, other, 4 * kChunk, content.size()).code(),
              Code::kDataLoss);
    EXPECT_EQ(MissingBytes(*ingest), 2 * kChunk + 512);
    EXPECT_EQ(ingest->Commit({}).status().code(), Code::kUnavailable);
    BIM_ASSERT_OK(Give(*ingest, content, kChunk, content.size()));
    ExpectCommit(std::move(ingest), content);
    Remove();
  }
}

TEST_F(WriteAtTest, OneOfThoseWhoGiveAWholeChunkAtOnceCounts) {
  for (uint32_t seed = 0; seed < 8; ++seed) {
    const std::string one = test::RandomBytes(2 * kMiB + 512, 82 + seed);
    std::string other = one;
    other[kMiB + 17] ^= 1;
    auto ingest = Start(one.size());
    std::atomic<int> refused{0};
    std::vector<std::thread> running;
    for (int i = 0; i < 4; ++i) {
      running.emplace_back([&, i] {
        const std::string& mine = i % 2 == 0 ? one : other;
        for (uint64_t at = 0; at < mine.size(); at += kMiB) {
          const Status given = Give(*ingest, mine, at,
                                    std::min<uint64_t>(mine.size(), at + kMiB));
          if (given.code() == Code::kDataLoss) ++refused;
          EXPECT_TRUE(given.ok() || at == kMiB) << given.ToString();
        }
      });
    }
    for (std::thread& thread : running) thread.join();
    EXPECT_EQ(refused, 2);
    BIM_ASSERT_OK(ingest->Settle());
    const std::string there = ReadAll(Temp());
    EXPECT_TRUE(there == one || there == other);
    ExpectCommit(std::move(ingest), there);
    Remove();
  }
}

TEST_F(WriteAtTest, AWholeChunkOverHolesAndPieces) {
  const std::string content = Content(4 * kMiB, 90, 16 * kKiB);
  auto ingest = Start(content.size());
  BIM_ASSERT_OK(ingest->HoleAt(512, 1024, {}));
  BIM_ASSERT_OK(ingest->HoleAt(kChunk, 2 * kChunk, {}));
  BIM_ASSERT_OK(
      ingest->WriteAt(kMiB + kChunk + 512, AsBytes(std::string(512, 'x')), {}));
  // A chunk that is nothing but a hole is complete already.
  EXPECT_EQ(Give(*ingest, content, 0, kMiB).code(), Code::kDataLoss);
  BIM_ASSERT_OK(Give(*ingest, content, 2 * kChunk, content.size()));
  std::string expected = content;
  std::fill_n(expected.begin() + kChunk, kChunk, '\0');
  ExpectCommit(std::move(ingest), expected);
}

class DigestAtTest : public WriteAtTest {
 protected:
  static void ExpectDigest(Ingest& ingest, std::string_view content,
                           uint64_t begin, uint64_t end) {
    const auto digest = ingest.DigestAt(begin, end, {});
    ASSERT_TRUE(digest.ok()) << digest.status().ToString();
    ASSERT_TRUE(digest->has_value()) << begin << " to " << end;
    EXPECT_EQ(**digest, Sha512(content.substr(begin, end - begin)))
        << begin << " to " << end;
  }
  static void ExpectNone(Ingest& ingest, uint64_t begin, uint64_t end) {
    const auto digest = ingest.DigestAt(begin, end, {});
    ASSERT_TRUE(digest.ok()) << digest.status().ToString();
    EXPECT_FALSE(digest->has_value()) << begin << " to " << end;
  }
};

TEST_F(DigestAtTest, CompleteChunks) {
  // More than is read at once; the last chunk is short.
  const std::string content = Content(12 * kChunk + 1536, 80, 16 * kKiB);
  const uint64_t size = content.size();
  auto ingest = Start(size);
  GiveAll(*ingest, content, Pieces(size, 80, 96 * kKiB), 2);
  ExpectDigest(*ingest, content, 0, size);
  for (uint64_t at = 0; at < size; at += kChunk) {
    ExpectDigest(*ingest, content, at, std::min(size, at + kChunk));
  }
  // Anywhere, also where no chunk begins.
  std::mt19937 random(80);
  for (int i = 0; i < 50; ++i) {
    const uint64_t begin = random() % size;
    ExpectDigest(*ingest, content, begin,
                 begin + 1 + random() % (size - begin));
  }
  ExpectDigest(*ingest, content, 0, 1);
  ExpectDigest(*ingest, content, size - 1, size);
  ExpectDigest(*ingest, content, kChunk - 1, kChunk + 1);
  // It has changed nothing.
  ExpectCommit(std::move(ingest), content);
}

TEST_F(DigestAtTest, IncompleteChunks) {
  const std::string content = Content(6 * kChunk, 81, 16 * kKiB);
  auto ingest = Start(content.size());
  ExpectNone(*ingest, 0, 512);
  ExpectNone(*ingest, 0, content.size());
  // Chunks 1 and 3 are complete, 2 but for its last sector; 5 has its begin.
  BIM_ASSERT_OK(Give(*ingest, content, kChunk, 3 * kChunk - 512));
  BIM_ASSERT_OK(Give(*ingest, content, 3 * kChunk, 4 * kChunk));
  BIM_ASSERT_OK(Give(*ingest, content, 5 * kChunk, 5 * kChunk + 4096));
  ExpectDigest(*ingest, content, kChunk, 2 * kChunk);
  ExpectDigest(*ingest, content, 3 * kChunk, 4 * kChunk);
  const std::pair<uint64_t, uint64_t> none[] = {
      {0, kChunk},
      {kChunk - 1, kChunk + 1},
      {kChunk, 2 * kChunk + 1},
      {2 * kChunk, 2 * kChunk + 512},  // given, but not proven
      {2 * kChunk, 3 * kChunk},
      {3 * kChunk - 1, 3 * kChunk + 1},
      {3 * kChunk, 4 * kChunk + 1},
      {kChunk, 4 * kChunk},
      {5 * kChunk, 5 * kChunk + 4096},
      {0, content.size()}};
  for (const auto& [begin, end] : none) ExpectNone(*ingest, begin, end);
  // The last sector completes it.
  BIM_ASSERT_OK(Give(*ingest, content, 3 * kChunk - 512, 3 * kChunk));
  ExpectDigest(*ingest, content, kChunk, 4 * kChunk);
  ExpectNone(*ingest, kChunk - 1, 4 * kChunk);
  ExpectNone(*ingest, kChunk, 4 * kChunk + 1);
}

TEST_F(DigestAtTest, BeyondTheEndAndNothing) {
  const std::string content = Content(2 * kChunk + 512, 82, 16 * kKiB);
  const uint64_t size = content.size();
  auto ingest = Start(size);
  BIM_ASSERT_OK(Give(*ingest, content, 0, size));
  ExpectDigest(*ingest, content, 2 * kChunk, size);
  const std::pair<uint64_t, uint64_t> none[] = {{0, size + 1},
                                                {2 * kChunk, size + 512},
                                                {2 * kChunk, 3 * kChunk},
                                                {size, size + 1},
                                                {size - 1, UINT64_MAX},
                                                {UINT64_MAX - 512, UINT64_MAX},
                                                {0, 0},
                                                {512, 512},
                                                {size, size},
                                                {1024, 512},
                                                {UINT64_MAX, 0}};
  for (const auto& [begin, end] : none) ExpectNone(*ingest, begin, end);
}

TEST_F(DigestAtTest, Holes) {
  const std::string content(3 * kChunk, '\0');
  auto ingest = Start(content.size());
  BIM_ASSERT_OK(ingest->HoleAt(0, 2 * kChunk + 512, {}));
  ExpectDigest(*ingest, content, 0, 2 * kChunk);
  ExpectNone(*ingest, 2 * kChunk, 2 * kChunk + 512);
}

// Of what lies there, not of what once came.
TEST_F(DigestAtTest, ReadsTheFile) {
  std::string content = Content(2 * kChunk, 83, 16 * kKiB);
  auto ingest = Start(content.size());
  BIM_ASSERT_OK(Give(*ingest, content, 0, content.size()));
  ExpectDigest(*ingest, content, 0, content.size());
  test::FlipByte(Temp(), kChunk + 7);
  content[kChunk + 7] ^= 0x40;
  ExpectDigest(*ingest, content, 0, kChunk);
  ExpectDigest(*ingest, content, 0, content.size());
  // One that became shorter has nothing there.
  ASSERT_EQ(::truncate(Temp().c_str(), kChunk + 512), 0);
  ExpectDigest(*ingest, content, 0, kChunk + 512);
  ExpectNone(*ingest, 0, kChunk + 513);
}

TEST_F(DigestAtTest, BeforeAndBehindTheContent) {
  const std::string content = Content(2 * kChunk, 84, 16 * kKiB);
  auto ingest = Open();
  ExpectNone(*ingest, 0, 512);
  // The size is not known.
  BIM_ASSERT_OK(ingest->Begin(std::nullopt, ""));
  BIM_ASSERT_OK(ingest->Append(AsBytes(content), {}));
  BIM_ASSERT_OK(ingest->Settle());
  ExpectNone(*ingest, 0, 512);
  // Other content: what was complete is not any more.
  BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
  ExpectNone(*ingest, 0, 512);
  BIM_ASSERT_OK(Give(*ingest, content, 0, content.size()));
  ExpectDigest(*ingest, content, 0, content.size());
  BIM_ASSERT_OK(ingest->Discard());
  ExpectNone(*ingest, 0, 512);
}

TEST_F(DigestAtTest, WhatAnotherProcessLeft) {
  const std::string content = Content(6 * kChunk + 512, 85, 16 * kKiB);
  auto ingest = Start(content.size());
  BIM_ASSERT_OK(Give(*ingest, content, kChunk, 3 * kChunk + 512));
  BIM_ASSERT_OK(Give(*ingest, content, 5 * kChunk, content.size()));
  ingest.reset();
  test::FlipByte(Temp(), 5 * kChunk + 7);
  auto again = Open();
  ExpectNone(*again, kChunk, 2 * kChunk);  // nobody has looked yet
  BIM_ASSERT_OK(again->Restore({}));
  ExpectDigest(*again, content, kChunk, 3 * kChunk);
  ExpectDigest(*again, content, 6 * kChunk, content.size());
  ExpectNone(*again, 3 * kChunk, 3 * kChunk + 512);
  ExpectNone(*again, 5 * kChunk, 5 * kChunk + 512);  // damaged
}

TEST_F(DigestAtTest, AChunkThatWasRefused) {
  const std::string content = Content(2 * kChunk, 86, 16 * kKiB);
  auto ingest = Start(content.size(), WithReference(content, true));
  std::string other = content;
  other[5] ^= 1;
  EXPECT_EQ(Give(*ingest, other, 0, kChunk).code(), Code::kDataLoss);
  ExpectNone(*ingest, 0, kChunk);
  BIM_ASSERT_OK(Give(*ingest, content, 0, kChunk));
  ExpectDigest(*ingest, content, 0, kChunk);
}

TEST_F(DigestAtTest, Stopped) {
  const std::string content = Content(2 * kChunk, 87, 16 * kKiB);
  auto ingest = Start(content.size());
  BIM_ASSERT_OK(Give(*ingest, content, 0, kChunk));
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(ingest->DigestAt(0, kChunk, stop.get_token()).status().code(),
            Code::kCancelled);
  ExpectDigest(*ingest, content, 0, kChunk);
}

TEST_F(DigestAtTest, WhileOthersWrite) {
  const std::string content = Content(16 * kChunk, 88, 16 * kKiB);
  auto ingest = Start(content.size());
  std::atomic<bool> done{false};
  std::atomic<int> found{0};
  std::vector<std::thread> readers;
  for (uint32_t seed = 0; seed < 2; ++seed) {
    readers.emplace_back([&, seed] {
      std::mt19937 random(seed);
      for (bool last = false; !last;) {
        last = done;  // then once more
        const uint64_t begin = random() % 15 * kChunk;
        const uint64_t end = begin + (1 + random() % 2) * kChunk;
        const auto digest = ingest->DigestAt(begin, end, {});
        ASSERT_TRUE(digest.ok());
        if (!*digest) continue;
        ++found;
        EXPECT_EQ(**digest,
                  Sha512(std::string_view(content).substr(begin, end - begin)));
      }
    });
  }
  GiveAll(*ingest, content, Pieces(content.size(), 88, 64 * kKiB), 2);
  done = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_GE(found, 2);
  ExpectCommit(std::move(ingest), content);
}

}  // namespace
}  // namespace bim::store
