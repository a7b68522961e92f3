// Several writers on one ingest, and what is left when one of them, the
// process, or the disk stops in the middle.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <random>
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
using test::RandomBytes;
using test::ReadAll;
using test::ScratchDisk;
using test::Sha256;
using test::Sha512;
using ::testing::HasSubstr;

const ImageKey kKey{"debian", "u-1"};
constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * 1024;
constexpr uint64_t kChunk = kMinChunkSize;
constexpr uint64_t kBigChunk = 4 * kMiB;

bool AllZero(std::string_view text) {
  return text.empty() ||
         (text[0] == '\0' &&
          std::memcmp(text.data(), text.data() + 1, text.size() - 1) == 0);
}

// Random, with runs of zeros of all kinds in between.
std::string Content(size_t size, uint32_t seed, size_t longest_run) {
  std::string content = RandomBytes(size, seed);
  std::mt19937 random(seed);
  for (size_t at = 512; at < size;) {
    const size_t run = std::min<size_t>(size - at, random() % longest_run);
    if (random() % 2 == 0) std::fill_n(content.begin() + at, run, '\0');
    at += run + 1;
  }
  if (size > 0) content.back() = 'x';
  return content;
}

std::vector<Chunk> ChunksOf(std::string_view content, uint64_t chunk_size) {
  std::vector<Chunk> chunks;
  for (size_t at = 0; at < content.size(); at += chunk_size) {
    const std::string_view piece = content.substr(at, chunk_size);
    Chunk chunk;
    chunk.zero = AllZero(piece);
    if (!chunk.zero) {
      const base::Digest digest = Sha256(piece);
      std::copy(digest.bytes().begin(), digest.bytes().end(),
                chunk.sha256.begin());
    }
    chunks.push_back(chunk);
  }
  return chunks;
}

// How an ingest is proven.
enum class Proof { kHash, kReference, kTrust };

IngestOptions OptionsFor(Proof proof, std::string_view content,
                         uint64_t chunk_size) {
  IngestOptions options;
  if (proof == Proof::kHash) return options;
  auto record = std::make_shared<ImageRecord>();
  record->key = kKey;
  record->stamp.size = content.size();
  record->sha512 = Sha512(content);
  record->chunk_size = chunk_size;
  record->chunks = ChunksOf(content, chunk_size);
  record->chunk_count = static_cast<uint32_t>(record->chunks.size());
  options.reference = record;
  options.trust_reference = proof == Proof::kTrust;
  return options;
}

class WritersTest : public ::testing::Test {
 protected:
  std::unique_ptr<Ingest> Open(IngestOptions options = {}) {
    auto ingest = Ingest::Open(scratch_.disk, kKey, std::move(options));
    if (!ingest.ok()) {
      ADD_FAILURE() << ingest.status().ToString();
      return nullptr;
    }
    return *std::move(ingest);
  }
  // Open and begun.
  std::unique_ptr<Ingest> Start(std::string_view content,
                                Proof proof = Proof::kHash,
                                uint64_t chunk_size = kChunk) {
    auto ingest = Open(OptionsFor(proof, content, chunk_size));
    BIM_EXPECT_OK(ingest->Begin(content.size(), "v"));
    return ingest;
  }
  static Status Give(IngestWriter& writer, std::string_view content,
                     uint64_t begin, uint64_t end) {
    return writer.Append(AsBytes(content.substr(begin, end - begin)), {});
  }
  // Through a writer of its own, in pieces, zeros now and then as such.
  static Status GiveRange(Ingest& ingest, std::string_view content,
                          const io::Extent& range, uint32_t seed) {
    std::mt19937 random(seed);
    auto writer = ingest.Write(range.begin, range.end);
    while (writer->position() < range.end) {
      const uint64_t left = range.end - writer->position();
      const uint64_t most = random() % 3 == 0 ? 5000 : 2 * kMiB;
      const std::string_view piece = content.substr(
          writer->position(), std::min<uint64_t>(left, 1 + random() % most));
      const uint64_t before = writer->position();
      BIM_RETURN_IF_ERROR(AllZero(piece) && random() % 4 != 0
                              ? writer->AppendZeros(piece.size(), {})
                              : writer->Append(AsBytes(piece), {}));
      EXPECT_EQ(writer->position(), before + piece.size());
      if (random() % 16 == 0) BIM_RETURN_IF_ERROR(writer->Flush({}));
    }
    return random() % 2 == 0 ? writer->Flush({}) : base::OkStatus();
  }
  static void GiveMissing(Ingest& ingest, std::string_view content) {
    for (const io::Extent& range : ingest.Missing()) {
      BIM_EXPECT_OK(GiveRange(ingest, content, range, 1));
    }
  }
  static uint64_t BytesOf(const std::vector<io::Extent>& ranges) {
    uint64_t bytes = 0;
    for (const io::Extent& range : ranges) bytes += range.end - range.begin;
    return bytes;
  }

  std::string File() { return scratch_.Path(DataFile(kKey)); }
  std::string Temp() { return scratch_.Path(TempFile(kKey)); }
  std::string Journal() { return scratch_.Path(RecordFile(kKey)); }

  void ExpectReady(const std::string& content, uint64_t chunk_size) {
    ASSERT_EQ(ReadAll(File()).size(), content.size());
    EXPECT_TRUE(ReadAll(File()) == content);
    EXPECT_FALSE(Exists(Temp()));
    auto record = ReadRecord(scratch_.disk->root(), kKey, true);
    ASSERT_TRUE(record.ok()) << record.status().ToString();
    EXPECT_EQ(record->sha512, Sha512(content));
    EXPECT_EQ(record->chunk_size, chunk_size);
    EXPECT_EQ(record->chunks, ChunksOf(content, chunk_size));
  }
  // Commits, compares, and makes place for the next one.
  void ExpectCommit(std::unique_ptr<Ingest> ingest, const std::string& content,
                    uint64_t chunk_size = kChunk) {
    BIM_EXPECT_OK(ingest->Settle());
    EXPECT_TRUE(ingest->Missing().empty());
    EXPECT_EQ(ingest->stored_bytes(), content.size());
    auto record = ingest->Commit({});
    ASSERT_TRUE(record.ok()) << record.status().ToString();
    ingest.reset();
    ExpectReady(content, chunk_size);
    BIM_ASSERT_OK(RemoveImage(*scratch_.disk, kKey, false));
  }
  void ExpectNothingPublished() {
    EXPECT_FALSE(Exists(File()));
    auto found = Inspect(*scratch_.disk, kKey, 0644, "");
    ASSERT_TRUE(found.ok()) << found.status().ToString();
    EXPECT_EQ(found->kind, Found::Kind::kNothing);
  }

  ScratchDisk scratch_;
};

struct Way {
  Proof proof;
  uint64_t chunk_size;
};
const Way kWays[] = {{Proof::kHash, kChunk},
                     {Proof::kReference, kChunk},
                     {Proof::kTrust, kChunk},
                     {Proof::kReference, kBigChunk},
                     {Proof::kTrust, kBigChunk}};

std::string Name(const Way& way) {
  return std::string(way.proof == Proof::kHash        ? "hash"
                     : way.proof == Proof::kReference ? "reference"
                                                      : "trust") +
         " " + std::to_string(way.chunk_size / kKiB) + " KiB";
}

// Bytes of the file's blocks that are not zero.
uint64_t DataBytes(std::string_view content) {
  uint64_t bytes = 0;
  for (size_t at = 0; at < content.size(); at += io::kZeroBlock) {
    if (!AllZero(content.substr(at, io::kZeroBlock))) bytes += io::kZeroBlock;
  }
  return bytes;
}

// Cuts ranges at random chunks, and mixes them.
std::vector<io::Extent> CutAndShuffle(const std::vector<io::Extent>& ranges,
                                      uint64_t chunk_size,
                                      std::mt19937& random) {
  std::vector<io::Extent> cut;
  for (io::Extent range : ranges) {
    while (range.begin < range.end) {
      const uint64_t chunks = 1 + random() % 5;
      const uint64_t end =
          std::min(range.end, (range.begin / chunk_size + chunks) * chunk_size);
      cut.push_back({range.begin, end});
      range.begin = end;
    }
  }
  std::shuffle(cut.begin(), cut.end(), random);
  return cut;
}

// --- ranges

TEST_F(WritersTest, RandomRangesInRandomOrder) {
  for (const Way& way : kWays) {
    for (const size_t threads : {1, 4}) {
      for (uint32_t seed = 0; seed < 2; ++seed) {
        SCOPED_TRACE(Name(way) + " " + std::to_string(threads) + " threads " +
                     std::to_string(seed));
        std::mt19937 random(seed);
        const size_t size =
            (way.chunk_size == kBigChunk ? 13 : 5) * kMiB + random() % 4 * 512;
        const std::string content = Content(size, seed, 3 * way.chunk_size);
        auto ingest = Start(content, way.proof, way.chunk_size);
        const auto ranges =
            CutAndShuffle(ingest->Missing(), way.chunk_size, random);
        std::atomic<size_t> next{0};
        std::mutex mutex;
        Status failed;
        const auto work = [&] {
          for (size_t i = next++; i < ranges.size(); i = next++) {
            Status status = GiveRange(*ingest, content, ranges[i], seed + i);
            std::lock_guard lock(mutex);
            if (!status.ok()) failed = std::move(status);
          }
        };
        std::vector<std::thread> others;
        for (size_t i = 1; i < threads; ++i) others.emplace_back(work);
        work();
        for (std::thread& thread : others) thread.join();
        BIM_ASSERT_OK(failed);
        BIM_ASSERT_OK(ingest->Settle());
        // Pieces that end within a block of zeros cost that block.
        EXPECT_LE(test::AllocatedBytes(Temp()), DataBytes(content) + kMiB);
        ExpectCommit(std::move(ingest), content, way.chunk_size);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(WritersTest, WritersTakeTurns) {
  // Open all the time, each giving a little.
  for (const Way& way : kWays) {
    SCOPED_TRACE(Name(way));
    const std::string content = RandomBytes(16 * kMiB + 512, 5);
    auto ingest = Start(content, way.proof, way.chunk_size);
    const uint64_t share = 4 * kMiB;
    std::vector<std::unique_ptr<IngestWriter>> writers;
    for (uint64_t begin = 0; begin < content.size(); begin += share) {
      writers.push_back(ingest->Write(begin, begin + share));
    }
    ASSERT_EQ(writers.size(), 5u);
    const uint64_t piece = 300'007;
    for (uint64_t given = 0; given < share; given += piece) {
      for (size_t i = writers.size(); i-- > 0;) {
        const uint64_t begin = i * share + given;
        if (begin >= content.size()) continue;
        const uint64_t end = std::min<uint64_t>(
            {begin + piece, (i + 1) * share, content.size()});
        BIM_ASSERT_OK(Give(*writers[i], content, begin, end));
      }
    }
    writers.clear();
    ExpectCommit(std::move(ingest), content, way.chunk_size);
  }
}

TEST_F(WritersTest, BackToFrontIsHashedInOrder) {
  const std::string content = Content(9 * kMiB + 512, 3, 3 * kChunk);
  IngestOptions options;
  options.expect_sha512 = Sha512(content);
  options.expect_sha256 = Sha256(content);
  auto ingest = Open(options);
  BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
  for (uint32_t i = ChunkCount(content.size(), kChunk); i-- > 0;) {
    EXPECT_FALSE(ingest->HasChunk(i));
    const uint64_t end = std::min<uint64_t>((i + 1) * kChunk, content.size());
    BIM_ASSERT_OK(GiveRange(*ingest, content, {i * kChunk, end}, i));
    BIM_ASSERT_OK(ingest->Settle());
    EXPECT_TRUE(ingest->HasChunk(i));
  }
  ExpectCommit(std::move(ingest), content);
}

TEST_F(WritersTest, MoreThanTheRangeIsOutOfRange) {
  const std::string content = RandomBytes(2 * kMiB, 3);
  auto ingest = Start(content);
  auto writer = ingest->Write(kChunk, 2 * kChunk);
  BIM_EXPECT_OK(Give(*writer, content, kChunk, 2 * kChunk - 1));
  EXPECT_EQ(Give(*writer, content, 0, 2).code(), Code::kOutOfRange);
  EXPECT_EQ(writer->AppendZeros(2, {}).code(), Code::kOutOfRange);
  EXPECT_EQ(writer->AppendZeros(UINT64_MAX, {}).code(), Code::kOutOfRange);
  EXPECT_EQ(writer->position(), 2 * kChunk - 1);
  BIM_EXPECT_OK(Give(*writer, content, 2 * kChunk - 1, 2 * kChunk));
  EXPECT_EQ(Give(*writer, content, 0, 1).code(), Code::kOutOfRange);
  BIM_EXPECT_OK(Give(*writer, content, 0, 0));
  writer.reset();
  GiveMissing(*ingest, content);
  ExpectCommit(std::move(ingest), content);
}

TEST_F(WritersTest, ZerosStayHoles) {
  for (const Way& way : kWays) {
    SCOPED_TRACE(Name(way));
    // Data at both ends of each half.
    std::string content(32 * kMiB, '\0');
    for (const uint64_t at : {uint64_t{0}, 15 * kMiB, 16 * kMiB, 31 * kMiB}) {
      content.replace(at, kMiB, RandomBytes(kMiB, 4));
    }
    auto ingest = Start(content, way.proof, way.chunk_size);
    const auto missing = ingest->Missing();
    if (way.proof != Proof::kHash) {
      // The zeros of the reference are there at once.
      EXPECT_LE(BytesOf(missing), 4 * std::max(kMiB, way.chunk_size));
      EXPECT_EQ(ingest->stored_bytes(), content.size() - BytesOf(missing));
    }
    for (size_t i = missing.size(); i-- > 0;) {
      auto writer = ingest->Write(missing[i].begin, missing[i].end);
      for (uint64_t at = missing[i].begin; at < missing[i].end;
           at += kMiB / 4) {
        const std::string_view piece =
            std::string_view(content).substr(at, kMiB / 4);
        BIM_ASSERT_OK(AllZero(piece) ? writer->AppendZeros(piece.size(), {})
                                     : writer->Append(AsBytes(piece), {}));
      }
    }
    BIM_ASSERT_OK(ingest->Settle());
    EXPECT_LE(test::AllocatedBytes(Temp()), 4 * kMiB + 64 * kKiB);
    ExpectCommit(std::move(ingest), content, way.chunk_size);
  }
}

// --- stopping within a chunk

const uint64_t kStops[] = {1,          511,           4095,          100'000,
                           kChunk - 1, kChunk,        kChunk + 1,    kMiB - 1,
                           kMiB,       2 * kMiB + 13, 3 * kMiB - 512};

TEST_F(WritersTest, GoesOnWithinAChunk) {
  for (const bool zeros : {false, true}) {
    std::string content = Content(3 * kMiB, 6, 3 * kChunk);
    if (zeros) std::fill(content.begin() + 512, content.end() - 512, '\0');
    for (const uint64_t stop : kStops) {
      SCOPED_TRACE(stop);
      auto ingest = Start(content);
      if (stop % 3 == 0) {
        // What lies behind is there already.
        BIM_ASSERT_OK(GiveRange(*ingest, content,
                                {content.size() - kChunk, content.size()}, 2));
      }
      BIM_ASSERT_OK(GiveRange(*ingest, content, {0, stop}, 3));
      const auto missing = ingest->Missing();
      if (!missing.empty()) {
        EXPECT_EQ(missing.front().begin, stop);
      }
      EXPECT_EQ(ingest->stored_bytes(), content.size() - BytesOf(missing));
      GiveMissing(*ingest, content);
      ExpectCommit(std::move(ingest), content);
      if (HasFailure()) return;
    }
  }
}

TEST_F(WritersTest, GoesOnOftenAndInManyPlaces) {
  const std::string content = Content(4 * kMiB, 7, kChunk);
  std::mt19937 random(7);
  auto ingest = Start(content);
  for (int round = 0; !ingest->Missing().empty(); ++round) {
    ASSERT_LT(round, 1000);
    const auto missing = ingest->Missing();
    const io::Extent range = missing[random() % missing.size()];
    // Anywhere in it, from a chunk's begin, or where somebody stopped.
    const uint64_t from =
        random() % 2 == 0
            ? range.begin
            : std::max<uint64_t>(
                  range.begin,
                  (range.begin + random() % (range.end - range.begin)) /
                      kChunk * kChunk);
    const uint64_t most = std::min<uint64_t>(range.end - from, 2 * kChunk);
    BIM_ASSERT_OK(GiveRange(*ingest, content,
                            {from, from + 1 + random() % most}, random()));
  }
  ExpectCommit(std::move(ingest), content);
}

TEST_F(WritersTest, BeginsAChunkAnew) {
  for (const Way& way : kWays) {
    const std::string content = Content(4 * kMiB + 512, 8, kChunk);
    for (const uint64_t stop : kStops) {
      SCOPED_TRACE(Name(way) + " " + std::to_string(stop));
      auto ingest = Start(content, way.proof, way.chunk_size);
      {
        auto writer = ingest->Write(0, content.size());
        BIM_ASSERT_OK(Give(*writer, content, 0, stop));
      }
      const uint64_t begin = stop / way.chunk_size * way.chunk_size;
      // Once more not far enough.
      {
        auto writer = ingest->Write(begin, content.size());
        EXPECT_EQ(writer->position(), begin);
        BIM_ASSERT_OK(Give(*writer, content, begin, (begin + stop) / 2));
      }
      BIM_ASSERT_OK(GiveRange(*ingest, content, {begin, content.size()}, 3));
      ExpectCommit(std::move(ingest), content, way.chunk_size);
      if (HasFailure()) return;
    }
  }
}

TEST_F(WritersTest, WithAReferenceAPartOfAChunkIsDropped) {
  for (const Way& way : kWays) {
    if (way.proof == Proof::kHash) continue;
    // The second chunk is half zeros.
    std::string content = RandomBytes(2 * way.chunk_size + 512, 9);
    std::fill_n(content.begin() + way.chunk_size + 8192, way.chunk_size / 2,
                '\0');
    for (const uint64_t part :
         {uint64_t{1}, way.chunk_size / 3, way.chunk_size - 1}) {
      SCOPED_TRACE(Name(way) + " " + std::to_string(part));
      auto ingest = Start(content, way.proof, way.chunk_size);
      {
        // Bytes that are wrong, but not seen to be.
        const std::string wrong = RandomBytes(part, 99);
        auto writer = ingest->Write(way.chunk_size, content.size());
        BIM_ASSERT_OK(writer->Append(AsBytes(wrong), {}));
        if (part % 2 == 0) BIM_ASSERT_OK(writer->Flush({}));
      }
      const auto missing = ingest->Missing();
      ASSERT_EQ(missing.size(), 1u);
      EXPECT_EQ(missing[0].begin, 0u);
      EXPECT_EQ(missing[0].end, content.size());
      {
        auto writer = ingest->Write(way.chunk_size, 2 * way.chunk_size);
        const uint64_t at = way.chunk_size;
        BIM_ASSERT_OK(Give(*writer, content, at, at + 8192));
        BIM_ASSERT_OK(writer->AppendZeros(way.chunk_size / 2, {}));
        BIM_ASSERT_OK(Give(*writer, content, at + 8192 + way.chunk_size / 2,
                           at + way.chunk_size));
      }
      GiveMissing(*ingest, content);
      ExpectCommit(std::move(ingest), content, way.chunk_size);
      if (HasFailure()) return;
    }
  }
}

// --- chunks that differ

TEST_F(WritersTest, ADifferentChunkIsGivenAgain) {
  for (const Way& way : kWays) {
    if (way.proof == Proof::kHash) continue;
    const uint64_t size = 2 * way.chunk_size + 5 * 512;
    const std::string content = Content(size, 10, way.chunk_size);
    for (const uint64_t wrong_at :
         {uint64_t{0}, way.chunk_size - 1, way.chunk_size,
          way.chunk_size + way.chunk_size / 2, size - 1}) {
      for (const bool pieces : {false, true}) {
        SCOPED_TRACE(Name(way) + " " + std::to_string(wrong_at));
        std::string other = content;
        other[wrong_at] = static_cast<char>(other[wrong_at] ^ 1);
        const uint64_t chunk = wrong_at / way.chunk_size;
        const uint64_t begin = chunk * way.chunk_size;
        auto ingest = Start(content, way.proof, way.chunk_size);
        auto writer = ingest->Write(0, size);
        Status status;
        for (uint64_t at = 0; at < size && status.ok();) {
          const uint64_t take =
              pieces ? std::min<uint64_t>(70'001, size - at) : size;
          status = Give(*writer, other, at, at + take);
          at += take;
        }
        ASSERT_EQ(status.code(), Code::kDataLoss) << status.ToString();
        EXPECT_THAT(status.message(),
                    HasSubstr("chunk " + std::to_string(chunk) + " "));
        EXPECT_EQ(writer->position(), begin);
        if (pieces) writer = nullptr;  // another one goes on
        if (!writer) {
          EXPECT_EQ(ingest->Missing().front().begin, begin);
          writer = ingest->Write(begin, size);
        }
        BIM_ASSERT_OK(Give(*writer, content, begin, size));
        writer.reset();
        ExpectCommit(std::move(ingest), content, way.chunk_size);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(WritersTest, ZerosOverADroppedChunkReadAsZeros) {
  for (const Way& way : kWays) {
    if (way.proof == Proof::kHash) continue;
    for (const bool told : {false, true}) {
      SCOPED_TRACE(Name(way));
      // Data only in the last block of each chunk.
      std::string content(2 * way.chunk_size, '\0');
      for (const uint64_t end : {way.chunk_size, 2 * way.chunk_size}) {
        content.replace(end - 4096, 4096, RandomBytes(4096, 3));
      }
      const std::string garbage(content.size(), 'x');
      auto ingest = Start(content, way.proof, way.chunk_size);
      auto writer = ingest->Write(0, content.size());
      EXPECT_EQ(Give(*writer, garbage, 0, way.chunk_size).code(),
                Code::kDataLoss);
      EXPECT_EQ(writer->position(), 0u);
      // Twice.
      EXPECT_EQ(Give(*writer, garbage, 0, way.chunk_size).code(),
                Code::kDataLoss);
      if (told) {
        for (const uint64_t end : {way.chunk_size, 2 * way.chunk_size}) {
          BIM_ASSERT_OK(writer->AppendZeros(way.chunk_size - 4096, {}));
          BIM_ASSERT_OK(Give(*writer, content, end - 4096, end));
        }
      } else {
        BIM_ASSERT_OK(Give(*writer, content, 0, content.size()));
      }
      writer.reset();
      BIM_ASSERT_OK(ingest->Settle());
      EXPECT_LE(test::AllocatedBytes(Temp()), 64 * kKiB);
      ExpectCommit(std::move(ingest), content, way.chunk_size);
    }
  }
}

TEST_F(WritersTest, TooManyZerosAreADifferentChunk) {
  for (const Way& way : kWays) {
    if (way.proof == Proof::kHash) continue;
    SCOPED_TRACE(Name(way));
    const std::string content = RandomBytes(5 * way.chunk_size, 3);
    auto ingest = Start(content, way.proof, way.chunk_size);
    auto writer = ingest->Write(0, content.size());
    BIM_ASSERT_OK(Give(*writer, content, 0, way.chunk_size + 100));
    EXPECT_EQ(writer->AppendZeros(3 * way.chunk_size, {}).code(),
              Code::kDataLoss);
    EXPECT_EQ(writer->position(), way.chunk_size);
    EXPECT_EQ(writer->AppendZeros(way.chunk_size, {}).code(), Code::kDataLoss);
    EXPECT_EQ(writer->position(), way.chunk_size);
    BIM_ASSERT_OK(Give(*writer, content, way.chunk_size, content.size()));
    writer.reset();
    ExpectCommit(std::move(ingest), content, way.chunk_size);
  }
}

TEST_F(WritersTest, DifferentChunksOnSeveralThreads) {
  // Each thread gives each of its chunks wrong first.
  for (const Way& way : kWays) {
    if (way.proof == Proof::kHash) continue;
    SCOPED_TRACE(Name(way));
    const std::string content =
        Content(way.chunk_size == kBigChunk ? 5 * kBigChunk : 24 * kChunk, 12,
                way.chunk_size);
    auto ingest = Start(content, way.proof, way.chunk_size);
    std::mt19937 random(3);
    std::vector<io::Extent> ranges;
    for (uint64_t at = 0; at < content.size(); at += way.chunk_size) {
      if (!ingest->HasChunk(static_cast<uint32_t>(at / way.chunk_size))) {
        ranges.push_back({at, at + way.chunk_size});
      }
    }
    std::shuffle(ranges.begin(), ranges.end(), random);
    std::atomic<size_t> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] {
        for (size_t at = next++; at < ranges.size(); at = next++) {
          const io::Extent range = ranges[at];
          std::string wrong =
              content.substr(range.begin, range.end - range.begin);
          wrong.back() = static_cast<char>(wrong.back() ^ 4);
          auto writer = ingest->Write(range.begin, range.end);
          EXPECT_EQ(writer->Append(AsBytes(wrong), {}).code(), Code::kDataLoss);
          if (at % 2 == 0) {
            writer.reset();
            writer = ingest->Write(range.begin, range.end);
          }
          BIM_EXPECT_OK(Give(*writer, content, range.begin, range.end));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ExpectCommit(std::move(ingest), content, way.chunk_size);
  }
}

// --- resuming

// What lies on the disk at one moment, as a crash would leave it.
struct Snapshot {
  std::string temp;
  std::string journal;
};

class CrashTest : public WritersTest {
 protected:
  Snapshot Take() { return {ReadAll(Temp()), ReadAll(Journal())}; }
  // Puts it back in place: the temp file stays the one of the journal.
  void PutBack(const Snapshot& snapshot) {
    test::WriteAll(Temp(), snapshot.temp);
    test::WriteAll(Journal(), snapshot.journal);
  }
  // Whether what lies there can be gone on with at all.
  bool Resumable() { return ReadJournal(scratch_.disk->root(), kKey).ok(); }
  // Chunks that the journal vouches for.
  std::vector<bool> Vouched() {
    auto journal = ReadJournal(scratch_.disk->root(), kKey);
    std::vector<bool> chunks;
    if (!journal.ok()) return chunks;
    for (const auto& chunk : journal->chunks) chunks.push_back(!!chunk);
    return chunks;
  }
};

TEST_F(CrashTest, ChunksOutOfOrderAreKept) {
  for (const Way& way : kWays) {
    for (uint32_t seed = 0; seed < 2; ++seed) {
      SCOPED_TRACE(Name(way) + " " + std::to_string(seed));
      std::mt19937 random(seed);
      const size_t size = (way.chunk_size == kBigChunk ? 17 : 4) * kMiB + 512;
      const std::string content = Content(size, seed, 2 * way.chunk_size);
      Snapshot crash;
      {
        auto ingest = Start(content, way.proof, way.chunk_size);
        auto ranges = CutAndShuffle(ingest->Missing(), way.chunk_size, random);
        ranges.resize(ranges.size() / 2);
        for (const io::Extent& range : ranges) {
          BIM_ASSERT_OK(GiveRange(*ingest, content, range, seed));
        }
        const auto missing = ingest->Missing();  // waits
        // Somebody is in the middle of something.
        auto writer = ingest->Write(missing[0].begin, missing[0].end);
        BIM_ASSERT_OK(Give(*writer, content, missing[0].begin,
                           missing[0].begin + way.chunk_size / 2));
        BIM_ASSERT_OK(writer->Flush({}));
        crash = Take();
        writer.reset();
      }
      // What nobody vouches for holds anything.
      PutBack(crash);
      if (!Resumable()) continue;
      const std::vector<bool> vouched = Vouched();
      ASSERT_FALSE(vouched.empty());
      // Few chunks, mostly of zeros: it may be that none was given.
      if (std::find(vouched.begin(), vouched.end(), true) == vouched.end()) {
        continue;
      }
      std::string temp = crash.temp;
      for (size_t i = 0; i < vouched.size(); ++i) {
        if (vouched[i]) continue;
        const uint64_t begin = i * way.chunk_size;
        temp.replace(begin, std::min(way.chunk_size, size - begin),
                     RandomBytes(std::min(way.chunk_size, size - begin), 77));
      }
      PutBack({temp, crash.journal});

      auto ingest = Open(OptionsFor(way.proof, content, way.chunk_size));
      EXPECT_FALSE(ingest->partial_validator().empty());
      EXPECT_EQ(ingest->partial_size(), size);
      BIM_ASSERT_OK(ingest->Restore({}));
      ASSERT_TRUE(ingest->begun());
      const auto chunks = ChunksOf(content, way.chunk_size);
      for (uint32_t i = 0; i < vouched.size(); ++i) {
        EXPECT_EQ(ingest->HasChunk(i),
                  vouched[i] || (way.proof != Proof::kHash && chunks[i].zero));
      }
      EXPECT_EQ(ingest->stored_bytes(), size - BytesOf(ingest->Missing()));
      GiveMissing(*ingest, content);
      ExpectCommit(std::move(ingest), content, way.chunk_size);
      if (HasFailure()) return;
    }
  }
}

TEST_F(CrashTest, AtManyMoments) {
  const std::string content = Content(4 * kMiB, 21, kChunk);
  std::mt19937 random(3);
  std::vector<Snapshot> crashes;
  size_t head_bytes = 0;
  {
    auto ingest = Start(content);
    head_bytes = ReadAll(Journal()).size();
    for (const io::Extent& range :
         CutAndShuffle(ingest->Missing(), kChunk, random)) {
      auto writer = ingest->Write(range.begin, range.end);
      const uint64_t middle = range.begin + (range.end - range.begin) / 2;
      BIM_ASSERT_OK(Give(*writer, content, range.begin, middle));
      BIM_ASSERT_OK(writer->Flush({}));
      // While the stages are at work. The journal first: it may be behind.
      Snapshot crash;
      crash.journal = ReadAll(Journal());
      crash.temp = ReadAll(Temp());
      crashes.push_back(std::move(crash));
      BIM_ASSERT_OK(Give(*writer, content, middle, range.end));
    }
  }
  for (const Snapshot& crash : crashes) {
    // Also torn.
    for (const size_t torn : {0, 1, 30}) {
      if (!Exists(Temp())) {
        // The last one was published: a new temp file, a new journal for it.
        auto ingest = Start(content);
        ingest.reset();
      }
      struct stat st = {};
      ASSERT_EQ(::stat(Temp().c_str(), &st), 0);
      test::WriteAll(Temp(), crash.temp);
      // The entries behind a header that names this file.
      JournalHeader header{kKey, content.size(), kChunk, "v", st.st_ino};
      const std::string own = EncodeJournalHeader(header);
      const std::string entries = crash.journal.substr(head_bytes);
      std::string journal = own + entries;
      journal.resize(journal.size() - std::min(torn, entries.size()));
      test::WriteAll(Journal(), journal);
      auto ingest = Open();
      BIM_ASSERT_OK(ingest->Restore({}));
      if (!ingest->begun()) BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
      GiveMissing(*ingest, content);
      ExpectCommit(std::move(ingest), content);
      if (HasFailure()) return;
    }
  }
}

TEST_F(CrashTest, ChangedBytesAreGivenAgain) {
  for (const Way& way : kWays) {
    SCOPED_TRACE(Name(way));
    const uint64_t size = 5 * way.chunk_size + 512;
    const std::string content = RandomBytes(size, 31);
    auto ingest = Start(content, way.proof, way.chunk_size);
    BIM_ASSERT_OK(GiveRange(*ingest, content, {3 * way.chunk_size, size}, 1));
    BIM_ASSERT_OK(GiveRange(*ingest, content, {0, 2 * way.chunk_size}, 1));
    ingest.reset();
    if (!Resumable()) continue;
    test::FlipByte(Temp(), 3 * way.chunk_size + 5);
    test::FlipByte(Temp(), size - 1);
    ingest = Open(OptionsFor(way.proof, content, way.chunk_size));
    BIM_ASSERT_OK(ingest->Restore({}));
    const auto missing = ingest->Missing();
    ASSERT_EQ(missing.size(), 2u);
    EXPECT_EQ(missing[0].begin, 2 * way.chunk_size);
    EXPECT_EQ(missing[0].end, 4 * way.chunk_size);
    EXPECT_EQ(missing[1].begin, 5 * way.chunk_size);
    EXPECT_EQ(missing[1].end, size);
    GiveMissing(*ingest, content);
    ExpectCommit(std::move(ingest), content, way.chunk_size);
  }
}

TEST_F(CrashTest, OfAnotherContentOnlyWhatTheReferenceSays) {
  for (const Way& way : kWays) {
    if (way.proof == Proof::kHash) continue;
    SCOPED_TRACE(Name(way));
    const uint64_t size = 8 * way.chunk_size;
    const std::string content = Content(size, 41, way.chunk_size);
    std::string older = content;
    for (uint64_t i = 0; i < 8; i += 2) {
      older.replace(i * way.chunk_size, way.chunk_size,
                    RandomBytes(way.chunk_size, i));
    }
    // Two of the new ones are all zeros where older ones were not.
    std::string wanted = content;
    std::fill_n(wanted.begin() + 2 * way.chunk_size, way.chunk_size, '\0');
    std::fill_n(wanted.begin() + 5 * way.chunk_size, way.chunk_size, '\0');
    {
      auto ingest = Start(older, Proof::kReference, way.chunk_size);
      GiveMissing(*ingest, older);
    }
    if (!Resumable()) continue;
    auto ingest = Open(OptionsFor(way.proof, wanted, way.chunk_size));
    BIM_ASSERT_OK(ingest->Restore({}));
    ASSERT_TRUE(ingest->begun());
    EXPECT_EQ(ingest->validator(), "sha512:" + Sha512(wanted).Hex());
    const auto zero = ChunksOf(wanted, way.chunk_size);
    for (uint32_t i = 0; i < 8; ++i) {
      EXPECT_EQ(ingest->HasChunk(i), (i % 2 == 1) || zero[i].zero) << i;
    }
    GiveMissing(*ingest, wanted);
    ExpectCommit(std::move(ingest), wanted, way.chunk_size);
  }
}

TEST_F(CrashTest, ARestoreThatFailedMayBeRepeated) {
  const std::string content = RandomBytes(4 * kMiB, 51);
  {
    auto ingest = Start(content);
    BIM_ASSERT_OK(GiveRange(*ingest, content, {kMiB, 3 * kMiB}, 1));
  }
  std::string temp = ReadAll(Temp());
  temp.replace(0, kMiB, std::string(kMiB, 'x'));
  test::WriteAll(Temp(), temp);
  auto ingest = Open();
  std::stop_source stop;
  stop.request_stop();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(ingest->Restore(stop.get_token()).code(), Code::kCancelled);
    EXPECT_FALSE(ingest->begun());
    EXPECT_EQ(ingest->partial_validator(), "v");
  }
  BIM_ASSERT_OK(ingest->Restore({}));
  EXPECT_TRUE(ingest->begun());
  EXPECT_EQ(ingest->stored_bytes(), 2 * kMiB);
  GiveMissing(*ingest, content);
  ExpectCommit(std::move(ingest), content);
}

// --- cloning

TEST_F(WritersTest, AChunkIsClonedOrCannotBe) {
  const std::string content = RandomBytes(3 * kBigChunk, 61);
  const std::string file = scratch_.dir / "source";
  test::WriteAll(file, content);
  const base::UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(fd);
  for (const bool dirty : {false, true}) {
    auto ingest = Start(content, Proof::kTrust, kBigChunk);
    if (dirty) {
      auto writer = ingest->Write(kBigChunk, 2 * kBigChunk);
      BIM_ASSERT_OK(
          writer->Append(AsBytes(std::string(kBigChunk - 1, 'x')), {}));
    }
    const Status right = ingest->CloneChunk(1, fd.get(), kBigChunk);
    if (right.ok()) {
      EXPECT_TRUE(ingest->HasChunk(1));
      EXPECT_EQ(ingest->CloneChunk(2, fd.get(), 0).code(), Code::kDataLoss);
    } else {
      EXPECT_EQ(right.code(), Code::kUnimplemented) << right.ToString();
      EXPECT_FALSE(ingest->HasChunk(1));
    }
    GiveMissing(*ingest, content);
    ExpectCommit(std::move(ingest), content, kBigChunk);
  }
}

// --- committing

TEST_F(WritersTest, CommitSaysHowManyBytesCame) {
  const std::string content = RandomBytes(4 * kMiB, 71);
  auto ingest = Start(content);
  const auto expect = [&](uint64_t bytes) {
    auto record = ingest->Commit({});
    EXPECT_EQ(record.status().code(), Code::kUnavailable);
    EXPECT_THAT(record.status().message(),
                HasSubstr("only " + std::to_string(bytes) + " of " +
                          std::to_string(content.size()) + " bytes came"));
    ExpectNothingPublished();
  };
  expect(0);
  BIM_ASSERT_OK(GiveRange(*ingest, content, {kMiB, 2 * kMiB}, 1));
  expect(kMiB);
  BIM_ASSERT_OK(GiveRange(*ingest, content, {0, 100'001}, 1));
  expect(kMiB + 100'001);
  BIM_ASSERT_OK(GiveRange(*ingest, content, {2 * kMiB, 4 * kMiB}, 1));
  expect(3 * kMiB + 100'001);
  BIM_ASSERT_OK(GiveRange(*ingest, content, {100'001, kMiB - 1}, 1));
  expect(4 * kMiB - 1);
  BIM_ASSERT_OK(GiveRange(*ingest, content, {kMiB - 1, kMiB}, 1));
  ExpectCommit(std::move(ingest), content);
}

TEST_F(WritersTest, AStoppedCommitMayBeRepeated) {
  const std::string content = RandomBytes(6 * kMiB, 72);
  auto ingest = Start(content);
  // Out of order, so that there is something left to hash.
  BIM_ASSERT_OK(GiveRange(*ingest, content, {3 * kMiB, 6 * kMiB}, 1));
  BIM_ASSERT_OK(GiveRange(*ingest, content, {0, 3 * kMiB}, 1));
  std::stop_source stop;
  stop.request_stop();
  auto stopped = ingest->Commit(stop.get_token());
  if (stopped.ok()) {
    // All was hashed already.
    ingest.reset();
    ExpectReady(content, kChunk);
    return;
  }
  EXPECT_EQ(stopped.status().code(), Code::kCancelled);
  ExpectNothingPublished();
  ExpectCommit(std::move(ingest), content);
}

// --- stopping

TEST_F(WritersTest, AStoppedWriterGoesOnWhereItIs) {
  for (const Way& way : kWays) {
    SCOPED_TRACE(Name(way));
    const std::string content = Content(9 * kMiB, 81, 2 * kMiB);
    auto ingest = Start(content, way.proof, way.chunk_size);
    std::stop_source stopped;
    stopped.request_stop();
    for (const io::Extent& range : ingest->Missing()) {
      auto writer = ingest->Write(range.begin, range.end);
      while (writer->position() < range.end) {
        const uint64_t at = writer->position();
        EXPECT_EQ(writer->Append(AsBytes("x"), stopped.get_token()).code(),
                  Code::kCancelled);
        EXPECT_EQ(writer->AppendZeros(1, stopped.get_token()).code(),
                  Code::kCancelled);
        EXPECT_EQ(writer->position(), at);
        // Nothing to hand on, or not handed on.
        const Status flushed = writer->Flush(stopped.get_token());
        EXPECT_TRUE(flushed.ok() || flushed.code() == Code::kCancelled);
        EXPECT_EQ(writer->position(), at);
        const uint64_t take = std::min<uint64_t>(range.end - at, 200'003);
        BIM_ASSERT_OK(Give(*writer, content, at, at + take));
      }
    }
    ExpectCommit(std::move(ingest), content, way.chunk_size);
  }
}

TEST_F(WritersTest, StopsFromAnotherThreadNeverHangOrLoseBytes) {
  for (const Way& way : kWays) {
    SCOPED_TRACE(Name(way));
    const std::string content = RandomBytes(12 * kMiB, 82);
    auto ingest = Start(content, way.proof, way.chunk_size);
    const uint64_t share = 4 * kMiB;
    std::mutex mutex;
    std::vector<std::stop_source> stops(3);
    std::atomic<size_t> done{0};
    std::vector<std::thread> threads;
    for (size_t i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] {
        const uint64_t end = (i + 1) * share;
        auto writer = ingest->Write(i * share, end);
        int cancelled = 0;
        while (writer->position() < end) {
          std::stop_token stop;
          {
            std::lock_guard lock(mutex);
            // In the end it has to be let.
            stops[i] = cancelled < 50 ? std::stop_source()
                                      : std::stop_source(std::nostopstate);
            stop = stops[i].get_token();
          }
          const uint64_t at = writer->position();
          const Status status = writer->Append(
              AsBytes(std::string_view(content).substr(at, end - at)), stop);
          if (status.ok()) continue;
          EXPECT_EQ(status.code(), Code::kCancelled) << status.ToString();
          ++cancelled;
        }
        writer.reset();
        ++done;
      });
    }
    while (done < 3) {
      {
        std::lock_guard lock(mutex);
        for (std::stop_source& stop : stops) stop.request_stop();
      }
      std::this_thread::yield();
    }
    for (std::thread& thread : threads) thread.join();
    ExpectCommit(std::move(ingest), content, way.chunk_size);
    if (HasFailure()) return;
  }
}

// --- ending

TEST_F(WritersTest, EndsInAnyOrder) {
  const std::string content = RandomBytes(9 * kMiB, 91);
  for (const Way& way : kWays) {
    for (int variant = 0; variant < 6; ++variant) {
      SCOPED_TRACE(Name(way) + " " + std::to_string(variant));
      auto ingest = Start(content, way.proof, way.chunk_size);
      auto first = ingest->Write(0, 4 * kMiB);
      auto second = ingest->Write(8 * kMiB, 9 * kMiB);
      auto idle = ingest->Write(4 * kMiB, 8 * kMiB);
      BIM_ASSERT_OK(Give(*first, content, 0, 4 * kMiB));
      BIM_ASSERT_OK(Give(*second, content, 8 * kMiB, 8 * kMiB + 5));
      if (variant % 2 == 0) first.reset();
      second.reset();
      idle.reset();
      first.reset();
      switch (variant / 2) {
        case 0:
          break;  // the destructor suspends
        case 1:
          ingest->Suspend();
          EXPECT_FALSE(ingest->begun());
          ingest->Suspend();
          break;
        case 2:
          BIM_EXPECT_OK(ingest->Discard());
          EXPECT_FALSE(Exists(Temp()));
          BIM_EXPECT_OK(ingest->Discard());
          EXPECT_TRUE(ingest->Missing().empty());
          BIM_EXPECT_OK(ingest->Begin(content.size(), "w"));
          GiveMissing(*ingest, content);
          break;
      }
      ingest.reset();
      if (!ReadJournal(scratch_.disk->root(), kKey).ok()) continue;
      auto again = Open(OptionsFor(way.proof, content, way.chunk_size));
      EXPECT_EQ(again->partial_validator(), variant / 2 == 2 ? "w" : "v");
      BIM_ASSERT_OK(again->Restore({}));
      EXPECT_TRUE(again->HasChunk(0));
      GiveMissing(*again, content);
      ExpectCommit(std::move(again), content, way.chunk_size);
      if (HasFailure()) return;
    }
  }
}

TEST_F(WritersTest, BeginAgainForgetsWhatWasGiven) {
  const std::string older = RandomBytes(5 * kMiB, 92);
  const std::string content = Content(4 * kMiB + 512, 93, kMiB);
  auto ingest = Start(older);
  BIM_ASSERT_OK(GiveRange(*ingest, older, {kMiB, 3 * kMiB + 17}, 1));
  BIM_ASSERT_OK(GiveRange(*ingest, older, {0, 33}, 1));
  BIM_ASSERT_OK(ingest->Begin(content.size(), "w"));
  EXPECT_EQ(ingest->stored_bytes(), 0u);
  const auto missing = ingest->Missing();
  ASSERT_EQ(missing.size(), 1u);
  EXPECT_EQ(BytesOf(missing), content.size());
  BIM_ASSERT_OK(GiveRange(*ingest, content, {kMiB, content.size()}, 1));
  BIM_ASSERT_OK(GiveRange(*ingest, content, {0, kMiB}, 1));
  ExpectCommit(std::move(ingest), content);
}

// --- a full disk

// A file system of a few megabytes, where that can be had.
class SmallDisk {
 public:
  explicit SmallDisk(uint64_t bytes) {
    const std::string options = "size=" + std::to_string(bytes);
    mounted_ =
        ::mount("tmpfs", dir_.path().c_str(), "tmpfs", 0, options.c_str()) == 0;
    if (!mounted_) return;
    test::InitDisk(dir_.path(), "disk-1");
    disk_ = test::ClaimDisk(dir_.path());
  }
  ~SmallDisk() {
    disk_.reset();
    if (mounted_) ::umount2(dir_.path().c_str(), MNT_DETACH);
  }
  const std::shared_ptr<Disk>& disk() const { return disk_; }
  std::string Path(const std::string& relative) const {
    return dir_ / relative;
  }

 private:
  test::TempDir dir_;
  bool mounted_ = false;
  std::shared_ptr<Disk> disk_;
};

TEST(FullDiskTest, IsToldAndWhatFitIsKept) {
  SmallDisk small(8 * kMiB);
  if (!small.disk()) GTEST_SKIP() << "no mounts here";
  const std::string content = RandomBytes(32 * kMiB, 95);
  for (const Proof proof : {Proof::kHash, Proof::kTrust}) {
    auto opened =
        Ingest::Open(small.disk(), kKey, OptionsFor(proof, content, kChunk));
    ASSERT_TRUE(opened.ok()) << opened.status().ToString();
    auto ingest = *std::move(opened);
    BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
    BIM_EXPECT_OK(ingest->failure());
    std::vector<std::thread> threads;
    std::atomic<int> failed{0};
    for (uint64_t i = 0; i < 2; ++i) {
      threads.emplace_back([&, i] {
        const uint64_t begin = i * content.size() / 2;
        auto writer = ingest->Write(begin, begin + content.size() / 2);
        const Status status =
            writer->Append(AsBytes(std::string_view(content).substr(
                               begin, content.size() / 2)),
                           {});
        EXPECT_EQ(status.code(), Code::kResourceExhausted) << status.ToString();
        EXPECT_EQ(ingest->failure().code(), Code::kResourceExhausted);
        ++failed;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(failed, 2);
    EXPECT_EQ(ingest->failure().code(), Code::kResourceExhausted);
    EXPECT_EQ(ingest->Settle().code(), Code::kResourceExhausted);
    EXPECT_EQ(ingest->Commit({}).status().code(), Code::kResourceExhausted);
    const uint64_t missing = [&] {
      uint64_t bytes = 0;
      for (const io::Extent& range : ingest->Missing()) {
        bytes += range.end - range.begin;
      }
      return bytes;
    }();
    EXPECT_GT(missing, 24 * kMiB - 1);
    EXPECT_LT(missing, content.size());
    ingest.reset();
    auto again =
        Ingest::Open(small.disk(), kKey, OptionsFor(proof, content, kChunk));
    ASSERT_TRUE(again.ok());
    EXPECT_EQ((*again)->partial_validator(), "v");
    BIM_ASSERT_OK((*again)->Restore({}));
    EXPECT_GT((*again)->stored_bytes(), 4 * kMiB);
    BIM_EXPECT_OK((*again)->Settle());
    BIM_ASSERT_OK((*again)->Discard());
    BIM_EXPECT_OK((*again)->Settle());
    EXPECT_FALSE(Exists(small.Path(TempFile(kKey))));
  }
}

TEST(FullDiskTest, OnlyZerosStillFit) {
  SmallDisk small(2 * kMiB);
  if (!small.disk()) GTEST_SKIP() << "no mounts here";
  auto ingest = Ingest::Open(small.disk(), kKey, {});
  ASSERT_TRUE(ingest.ok());
  BIM_ASSERT_OK((*ingest)->Begin(64 * kMiB, "v"));
  BIM_ASSERT_OK((*ingest)->AppendZeros(64 * kMiB, {}));
  BIM_EXPECT_OK((*ingest)->Settle());
  ASSERT_TRUE((*ingest)->Commit({}).ok());
}

}  // namespace
}  // namespace bim::store
