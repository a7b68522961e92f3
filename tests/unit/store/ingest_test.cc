#include "pkg/store/ingest.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <random>
#include <thread>

#include "pkg/io/sparse.h"
#include "pkg/store/publish.h"
#include "tests/unit/store/scratch.h"

namespace bim::store {
namespace {

using base::Code;
using test::AsBytes;
using test::Exists;
using test::RandomBytes;
using test::ReadAll;
using test::ScratchDisk;
using test::Sha256;
using test::Sha512;
using test::WriteAll;
using ::testing::HasSubstr;

const ImageKey kKey{"debian", "u-1"};
constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * 1024;
constexpr uint64_t kChunk = kMinChunkSize;

// Random, with runs of zeros of all kinds in between.
std::string Content(size_t size, uint32_t seed) {
  std::string content = RandomBytes(size, seed);
  std::mt19937 random(seed);
  for (size_t at = 512; at < size;) {
    const size_t run = std::min<size_t>(size - at, random() % (3 * kChunk));
    if (random() % 2 == 0) std::fill_n(content.begin() + at, run, '\0');
    at += run + 1;
  }
  return content;
}

std::vector<Chunk> ChunksOf(std::string_view content, uint64_t chunk_size) {
  std::vector<Chunk> chunks;
  for (size_t at = 0; at < content.size(); at += chunk_size) {
    const std::string_view piece = content.substr(at, chunk_size);
    Chunk chunk;
    chunk.zero = piece.find_first_not_of('\0') == std::string_view::npos;
    if (!chunk.zero) {
      const base::Digest digest = Sha256(piece);
      std::copy(digest.bytes().begin(), digest.bytes().end(),
                chunk.sha256.begin());
    }
    chunks.push_back(chunk);
  }
  return chunks;
}

class IngestTest : public ::testing::Test {
 protected:
  std::unique_ptr<Ingest> Open(IngestOptions options = {},
                               const ImageKey& key = kKey) {
    auto ingest = Ingest::Open(scratch_.disk, key, std::move(options));
    if (!ingest.ok()) {
      ADD_FAILURE() << ingest.status().ToString();
      return nullptr;
    }
    return *std::move(ingest);
  }
  // In pieces of `piece` bytes; runs of zeros of at least `zeros` as such.
  static void Feed(Ingest& ingest, std::string_view content, size_t piece) {
    for (size_t at = 0; at < content.size(); at += piece) {
      BIM_ASSERT_OK(ingest.Append(AsBytes(content.substr(at, piece)), {}));
    }
  }
  std::string File() { return scratch_.Path(DataFile(kKey)); }
  std::string Temp() { return scratch_.Path(TempFile(kKey)); }
  std::string Record() { return scratch_.Path(RecordFile(kKey)); }

  void ExpectReady(const std::string& content) {
    ASSERT_EQ(ReadAll(File()).size(), content.size());
    EXPECT_TRUE(ReadAll(File()) == content);
    EXPECT_FALSE(Exists(Temp()));
    auto record = ReadRecord(scratch_.disk->root(), kKey, true);
    ASSERT_TRUE(record.ok()) << record.status().ToString();
    EXPECT_EQ(record->sha512, Sha512(content));
    EXPECT_EQ(record->stamp.size, content.size());
    EXPECT_EQ(record->chunks, ChunksOf(content, record->chunk_size));
    auto found = Inspect(*scratch_.disk, kKey, 0644, "");
    ASSERT_TRUE(found.ok()) << found.status().ToString();
    EXPECT_EQ(found->kind, Found::Kind::kReady);
    EXPECT_FALSE(found->by_config);
    auto scan = Scan(*scratch_.disk, kKey, false, {}, nullptr);
    ASSERT_TRUE(scan.ok()) << scan.status().ToString();
    EXPECT_EQ(scan->sha512, Sha512(content));
    auto config = ReadConfig(scratch_.disk->root(), kKey);
    ASSERT_TRUE(config.ok());
    EXPECT_EQ(config->current_checksum, Sha512(content).Hex());
    EXPECT_EQ(config->size, content.size());
    EXPECT_EQ(config->uuid, kKey.uuid);
    EXPECT_EQ(config->modification_time,
              FormatModificationTime(record->stamp.mtime_ns));
  }
  void ExpectNothingPublished() {
    EXPECT_FALSE(Exists(File()));
    auto found = Inspect(*scratch_.disk, kKey, 0644, "");
    ASSERT_TRUE(found.ok()) << found.status().ToString();
    EXPECT_EQ(found->kind, Found::Kind::kNothing);
  }
  void ExpectNothingKept() {
    ExpectNothingPublished();
    EXPECT_FALSE(Exists(Temp()));
    EXPECT_FALSE(Exists(Record()));
  }

  ScratchDisk scratch_;
};

const size_t kSizes[] = {512,          1 * kKiB,        4 * kKiB,
                         kChunk - 512, kChunk,          kChunk + 512,
                         2 * kChunk,   kMiB - 512,      kMiB,
                         kMiB + 512,   kMiB + kChunk,   3 * kMiB + 4096,
                         6 * kMiB,     7 * kMiB + 1536, 9 * kMiB};

TEST_F(IngestTest, RestsBetweenPieces) {
  // Of the stages; they get their names a moment after they begin.
  const auto threads = [] {
    size_t count = 0;
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/self/task")) {
      std::ifstream file(task.path() / "comm");
      std::string name;
      file >> name;
      if (name == "bim-write" || name == "bim-hash" || name == "bim-sync") {
        ++count;
      }
    }
    return count;
  };
  const auto becomes = [&](size_t count) {
    for (int i = 0; i < 5000 && threads() != count; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return threads() == count;
  };
  const std::string content = Content(9 * kMiB + 1536, 7);
  const size_t before = threads();
  // Not only where a chunk, or a block, ends.
  for (const size_t piece : {kMiB + 512, 3 * kMiB, 5 * kMiB + 4096}) {
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Begin(content.size(), "validator"));
    for (size_t at = 0; at < content.size(); at += piece) {
      BIM_ASSERT_OK(ingest->Append(
          AsBytes(std::string_view(content).substr(at, piece)), {}));
      EXPECT_TRUE(becomes(before + 3));
      BIM_ASSERT_OK(ingest->Rest());
      EXPECT_TRUE(becomes(before));
      BIM_ASSERT_OK(ingest->Rest());  // again
    }
    ASSERT_TRUE(ingest->Commit({}).ok());
    ExpectReady(content);
    std::filesystem::remove(File());
    std::filesystem::remove(Record());
  }
  // What is let go of while it rests is gone on with all the same.
  {
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Begin(content.size(), "validator"));
    Feed(*ingest, content.substr(0, 4 * kMiB), kMiB);
    BIM_ASSERT_OK(ingest->Rest());
  }
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Restore({}));
  EXPECT_EQ(ingest->position(), 4 * kMiB);
  BIM_ASSERT_OK(ingest->Rest());
  Feed(*ingest, content.substr(4 * kMiB), kMiB);
  ASSERT_TRUE(ingest->Commit({}).ok());
  ExpectReady(content);
}

// One that ends late does not take away what another began in its place.
TEST_F(IngestTest, AnOldOneLeavesTheNewOneAlone) {
  const std::string content = Content(3 * kMiB, 8);
  for (const bool discarded : {false, true}) {
    for (const char* validator : {"", "validator"}) {
      auto old = Open();
      BIM_ASSERT_OK(old->Begin(content.size(), validator));
      Feed(*old, content.substr(0, kMiB), kMiB);
      auto fresh = Open();
      BIM_ASSERT_OK(fresh->Begin(content.size(), validator));
      Feed(*fresh, content.substr(0, kMiB), kMiB);
      if (discarded) BIM_ASSERT_OK(old->Discard());
      old.reset();
      Feed(*fresh, content.substr(kMiB), kMiB);
      ASSERT_TRUE(fresh->Commit({}).ok());
      ExpectReady(content);
      std::filesystem::remove(File());
      std::filesystem::remove(Record());
    }
  }
}

TEST_F(IngestTest, AllSizesInPieces) {
  uint32_t seed = 1;
  for (size_t size : kSizes) {
    for (size_t piece :
         {size, size_t{4096}, size_t{65'537}, size_t{kMiB + 1}}) {
      SCOPED_TRACE(std::to_string(size) + " in " + std::to_string(piece));
      const std::string content = Content(size, ++seed);
      auto ingest = Open();
      ASSERT_TRUE(ingest);
      EXPECT_EQ(ingest->partial_validator(), "");
      EXPECT_FALSE(ingest->begun());
      BIM_ASSERT_OK(ingest->Begin(size, "\"v\""));
      EXPECT_TRUE(ingest->begun());
      EXPECT_EQ(ingest->total_bytes(), size);
      EXPECT_EQ(ingest->position(), 0u);
      Feed(*ingest, content, piece);
      EXPECT_EQ(ingest->position(), size);
      EXPECT_FALSE(Exists(File())) << "invisible until commit";
      auto record = ingest->Commit({});
      ASSERT_TRUE(record.ok()) << record.status().ToString();
      EXPECT_EQ(ingest->stored_bytes(), size);
      EXPECT_EQ(record->sha512, Sha512(content));
      EXPECT_EQ(record->chunk_size, ChunkSizeFor(size));
      EXPECT_EQ(record->chunk_count, ChunkCount(size, ChunkSizeFor(size)));
      EXPECT_EQ(record->format, "raw");
      EXPECT_EQ(record->virtual_size, size);
      ingest.reset();
      ExpectReady(content);
      BIM_ASSERT_OK(RemoveImage(*scratch_.disk, kKey, false));
    }
  }
}

TEST_F(IngestTest, ByteByByte) {
  const std::string content = Content(1024, 3);
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(1024, "v"));
  Feed(*ingest, content, 1);
  ASSERT_TRUE(ingest->Commit({}).ok());
  ExpectReady(content);
}

TEST_F(IngestTest, RandomMixOfDataAndZeros) {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const size_t size = 512 * (1 + random() % (12 * kMiB / 512));
    std::string content;
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Begin(seed % 3 == 2 ? std::optional<uint64_t>()
                                              : std::optional<uint64_t>(size),
                                "v"));
    const std::string head = RandomBytes(std::min<size_t>(size, 512), seed);
    BIM_ASSERT_OK(ingest->Append(AsBytes(head), {}));
    content += head;
    while (content.size() < size) {
      const size_t count = std::min<size_t>(
          size - content.size(),
          random() % 2 == 0 ? random() % 5000 : random() % (2 * kMiB));
      if (random() % 2 == 0) {
        BIM_ASSERT_OK(ingest->AppendZeros(count, {}));
        content.append(count, '\0');
      } else {
        const std::string data = RandomBytes(count, random());
        BIM_ASSERT_OK(ingest->Append(AsBytes(data), {}));
        content += data;
      }
      ASSERT_EQ(ingest->position(), content.size());
    }
    auto record = ingest->Commit({});
    ASSERT_TRUE(record.ok()) << record.status().ToString();
    ingest.reset();
    ExpectReady(content);
    BIM_ASSERT_OK(RemoveImage(*scratch_.disk, kKey, false));
  }
}

TEST_F(IngestTest, UnknownSizes) {
  uint32_t seed = 100;
  for (size_t size : {size_t{512}, size_t{4 * kMiB - 512}, size_t{4 * kMiB},
                      size_t{4 * kMiB + 512}, size_t{9 * kMiB + 512}}) {
    SCOPED_TRACE(size);
    const std::string content = Content(size, ++seed);
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Begin(std::nullopt, "v"));
    EXPECT_EQ(ingest->total_bytes(), 0u);
    Feed(*ingest, content, 70'000);
    auto record = ingest->Commit({});
    ASSERT_TRUE(record.ok()) << record.status().ToString();
    EXPECT_EQ(record->chunk_size, kUnknownSizeChunk);
    ingest.reset();
    ExpectReady(content);
    BIM_ASSERT_OK(RemoveImage(*scratch_.disk, kKey, false));
  }
}

TEST_F(IngestTest, UnknownSizeThatIsNoMultipleOf512KeepsNothing) {
  for (size_t size : {0, 1, 511, 513, 5'000'001}) {
    SCOPED_TRACE(size);
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Begin(std::nullopt, ""));
    Feed(*ingest, RandomBytes(size, 9), 65'536);
    EXPECT_EQ(ingest->Commit({}).status().code(), Code::kFailedPrecondition);
    ingest.reset();
    ExpectNothingKept();
  }
}

TEST_F(IngestTest, UnknownSizeCannotBeResumed) {
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(std::nullopt, "v"));
  Feed(*ingest, RandomBytes(6 * kMiB, 1), kMiB);
  ingest->Suspend();
  ingest.reset();
  ExpectNothingKept();
  EXPECT_EQ(Open()->partial_validator(), "");
}

TEST_F(IngestTest, EmptyValidatorCannotBeResumed) {
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(4 * kMiB, ""));
  Feed(*ingest, RandomBytes(2 * kMiB, 1), kMiB);
  ingest.reset();
  ExpectNothingKept();
}

TEST_F(IngestTest, ZerosBecomeHoles) {
  ScratchDisk on_disk(true);
  auto ingest = Ingest::Open(on_disk.disk, kKey, {});
  ASSERT_TRUE(ingest.ok());
  BIM_ASSERT_OK((*ingest)->Begin(64 * kMiB, "v"));
  std::string head = RandomBytes(8 * kKiB, 1);
  BIM_ASSERT_OK((*ingest)->Append(AsBytes(head), {}));
  const std::string zeros(3 * kMiB - head.size(), '\0');
  BIM_ASSERT_OK((*ingest)->Append(AsBytes(zeros), {}));
  BIM_ASSERT_OK((*ingest)->AppendZeros(60 * kMiB, {}));
  const std::string tail = RandomBytes(kMiB, 2);
  BIM_ASSERT_OK((*ingest)->Append(AsBytes(tail), {}));
  auto record = (*ingest)->Commit({});
  ASSERT_TRUE(record.ok()) << record.status().ToString();
  const std::string file = on_disk.Path(DataFile(kKey));
  EXPECT_LE(test::AllocatedBytes(file), kMiB + 64 * kKiB);
  std::string content = head;
  content.resize(63 * kMiB, '\0');
  content += tail;
  EXPECT_TRUE(ReadAll(file) == content);
  EXPECT_EQ(record->sha512, Sha512(content));
  auto scan = Scan(*on_disk.disk, kKey, true, {}, nullptr);
  ASSERT_TRUE(scan.ok());
  EXPECT_EQ(scan->sha512, Sha512(content));
  EXPECT_EQ(scan->sha256, Sha256(content));
  EXPECT_EQ(scan->chunks, ChunksOf(content, scan->chunk_size));
}

TEST_F(IngestTest, AllZerosIsAnImage) {
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(40 * kMiB, "v"));
  BIM_ASSERT_OK(ingest->AppendZeros(40 * kMiB, {}));
  auto record = ingest->Commit({});
  ASSERT_TRUE(record.ok()) << record.status().ToString();
  EXPECT_LE(test::AllocatedBytes(File()), 8 * kKiB);
  ExpectReady(std::string(40 * kMiB, '\0'));
}

TEST_F(IngestTest, ExpectedChecksums) {
  const std::string content = Content(3 * kMiB, 5);
  IngestOptions options;
  options.expect_sha512 = Sha512(content);
  options.expect_sha256 = Sha256(content);
  options.file_mode = 0600;
  options.origin = "download";
  options.shown_checksum = "as it was given";
  auto ingest = Open(options);
  BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
  Feed(*ingest, content, 100'000);
  auto record = ingest->Commit({});
  ASSERT_TRUE(record.ok()) << record.status().ToString();
  EXPECT_EQ(record->sha256, Sha256(content));
  EXPECT_EQ(record->origin, "download");
  struct stat st = {};
  ASSERT_EQ(::stat(File().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  EXPECT_EQ(ReadConfig(scratch_.disk->root(), kKey)->expected_checksum,
            "as it was given");
  ExpectReady(content);
}

TEST_F(IngestTest, WrongChecksumKeepsNothing) {
  const std::string content = Content(3 * kMiB, 5);
  for (const bool first : {true, false}) {
    IngestOptions options;
    if (first) options.expect_sha512 = Sha512("other");
    if (!first) options.expect_sha256 = Sha256("other");
    auto ingest = Open(options);
    BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
    Feed(*ingest, content, 100'000);
    const auto record = ingest->Commit({});
    EXPECT_EQ(record.status().code(), Code::kFailedPrecondition);
    EXPECT_THAT(
        record.status().message(),
        HasSubstr(first ? Sha512(content).Hex() : Sha256(content).Hex()));
    EXPECT_THAT(
        record.status().message(),
        HasSubstr(first ? Sha512("other").Hex() : Sha256("other").Hex()));
    ingest.reset();
    ExpectNothingKept();
  }
}

TEST_F(IngestTest, ShortIsNeverCommitted) {
  const std::string content = RandomBytes(2 * kMiB, 1);
  for (size_t given : {size_t{0}, size_t{1}, content.size() - 1}) {
    SCOPED_TRACE(given);
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
    Feed(*ingest, content.substr(0, given), kMiB);
    EXPECT_EQ(ingest->Commit({}).status().code(), Code::kUnavailable);
    ExpectNothingPublished();
    // And the rest may still come.
    Feed(*ingest, content.substr(given), kMiB);
    auto record = ingest->Commit({});
    ASSERT_TRUE(record.ok()) << record.status().ToString();
    ExpectReady(content);
    ingest.reset();
    BIM_ASSERT_OK(RemoveImage(*scratch_.disk, kKey, false));
  }
}

TEST_F(IngestTest, BeyondTheSizeIsOutOfRange) {
  const std::string content = RandomBytes(kMiB, 1);
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
  EXPECT_EQ(ingest->Append(AsBytes(content + "x"), {}).code(),
            Code::kOutOfRange);
  EXPECT_EQ(ingest->AppendZeros(kMiB + 1, {}).code(), Code::kOutOfRange);
  EXPECT_EQ(ingest->AppendZeros(~uint64_t{0}, {}).code(), Code::kOutOfRange);
  Feed(*ingest, content, kMiB);
  EXPECT_EQ(ingest->Append(AsBytes("x"), {}).code(), Code::kOutOfRange);
  EXPECT_EQ(ingest->AppendZeros(1, {}).code(), Code::kOutOfRange);
  ASSERT_TRUE(ingest->Commit({}).ok());
  ExpectReady(content);
}

TEST_F(IngestTest, BadSizes) {
  auto ingest = Open();
  for (uint64_t size : {0, 1, 511, 513, 1000}) {
    EXPECT_EQ(ingest->Begin(size, "v").code(), Code::kInvalidArgument);
    EXPECT_FALSE(ingest->begun());
  }
}

TEST_F(IngestTest, BeginAgainStartsFromNothing) {
  const std::string first = RandomBytes(3 * kMiB, 1);
  const std::string second = RandomBytes(2 * kMiB + 512, 2);
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(4 * kMiB, "v1"));
  Feed(*ingest, first, 300'000);
  BIM_ASSERT_OK(ingest->Begin(second.size(), "v2"));
  EXPECT_EQ(ingest->position(), 0u);
  EXPECT_EQ(ingest->validator(), "v2");
  Feed(*ingest, second, 300'000);
  auto record = ingest->Commit({});
  ASSERT_TRUE(record.ok()) << record.status().ToString();
  ExpectReady(second);
}

TEST_F(IngestTest, DiscardKeepsNothingAndMayBeginAgain) {
  const std::string content = RandomBytes(2 * kMiB, 1);
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Discard());
  BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
  Feed(*ingest, content.substr(0, kMiB + 5), kMiB);
  BIM_ASSERT_OK(ingest->Discard());
  EXPECT_FALSE(ingest->begun());
  ExpectNothingKept();
  BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
  Feed(*ingest, content, kMiB);
  ASSERT_TRUE(ingest->Commit({}).ok());
  ExpectReady(content);
}

// --- resume

class ResumeTest : public IngestTest {
 protected:
  // Leaves the first `given` bytes of content_, as a suspended ingest does.
  void Leave(size_t given) {
    auto ingest = Open();
    ASSERT_TRUE(ingest);
    BIM_ASSERT_OK(ingest->Begin(content_.size(), "\"etag\""));
    Feed(*ingest, content_.substr(0, given), 300'001);
    ingest->Suspend();
  }
  // Restores and expects to go on at `position`; then finishes.
  void FinishFrom(uint64_t position) {
    auto ingest = Open();
    ASSERT_TRUE(ingest);
    EXPECT_EQ(ingest->partial_validator(), "\"etag\"");
    EXPECT_EQ(ingest->partial_size(), content_.size());
    BIM_ASSERT_OK(ingest->Restore({}));
    EXPECT_EQ(ingest->position(), position);
    EXPECT_GE(ingest->stored_bytes(), position);
    if (!ingest->begun()) {
      ASSERT_EQ(position, 0u);
      BIM_ASSERT_OK(ingest->Begin(content_.size(), "\"etag\""));
    } else {
      EXPECT_EQ(ingest->validator(), "\"etag\"");
      EXPECT_EQ(ingest->total_bytes(), content_.size());
    }
    Feed(*ingest, std::string_view(content_).substr(position), 300'001);
    auto record = ingest->Commit({});
    ASSERT_TRUE(record.ok()) << record.status().ToString();
    ingest.reset();
    ExpectReady(content_);
    BIM_ASSERT_OK(RemoveImage(*scratch_.disk, kKey, false));
  }

  const std::string content_ = Content(5 * kMiB + 512, 77);
};

TEST_F(ResumeTest, ContinuesAtAChunkBoundary) {
  for (size_t given :
       {size_t{0}, size_t{1}, kChunk - 1, kChunk, kChunk + 1, kMiB - 1, kMiB,
        kMiB + kChunk + 7, 5 * kMiB - 1, 5 * kMiB}) {
    SCOPED_TRACE(given);
    Leave(given);
    ExpectNothingPublished();
    FinishFrom(given / kChunk * kChunk);
  }
}

TEST_F(ResumeTest, WholeFileIsKept) {
  Leave(content_.size());
  FinishFrom(content_.size());
}

TEST_F(ResumeTest, WholeFileIsKeptTwice) {
  Leave(content_.size());
  {
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Restore({}));
    EXPECT_EQ(ingest->position(), content_.size());
  }
  FinishFrom(content_.size());
}

TEST_F(ResumeTest, SeveralTimes) {
  Leave(kMiB + 100);
  uint64_t at = kMiB;
  for (int i = 0; i < 4; ++i) {
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Restore({}));
    ASSERT_EQ(ingest->position(), at);
    Feed(*ingest, std::string_view(content_).substr(at, 3 * kChunk + 9), 4096);
    at += 3 * kChunk;
  }
  FinishFrom(at);
}

TEST_F(ResumeTest, OriginSaysResumed) {
  Leave(kMiB);
  IngestOptions options;
  options.origin = "download";
  auto ingest = Open(options);
  BIM_ASSERT_OK(ingest->Restore({}));
  Feed(*ingest, std::string_view(content_).substr(kMiB), kMiB);
  auto record = ingest->Commit({});
  ASSERT_TRUE(record.ok());
  EXPECT_EQ(record->origin, "resumed download");
}

TEST_F(ResumeTest, FlippedByteContinuesBeforeItsChunk) {
  for (uint64_t at : {uint64_t{0}, kChunk - 1, 3 * kChunk, 3 * kChunk + 100,
                      8 * kChunk - 1}) {
    SCOPED_TRACE(at);
    Leave(2 * kMiB + 10);
    test::FlipByte(Temp(), at);
    FinishFrom(at / kChunk * kChunk);
  }
}

TEST_F(ResumeTest, FlippedByteBehindTheJournalIsNotRead) {
  Leave(2 * kMiB + 10);
  test::FlipByte(Temp(), 2 * kMiB + 5);
  test::FlipByte(Temp(), 4 * kMiB + 5);
  FinishFrom(2 * kMiB);
}

TEST_F(ResumeTest, TempFileCutOff) {
  Leave(2 * kMiB);
  ASSERT_EQ(::truncate(Temp().c_str(), kMiB + 4096), 0);
  // The chunk there may be the same if the rest of it is zeros.
  uint64_t good = kMiB;
  std::string cut = content_.substr(0, kMiB + 4096);
  cut.resize(2 * kMiB, '\0');
  while (good + kChunk <= 2 * kMiB &&
         cut.compare(good, kChunk, content_, good, kChunk) == 0) {
    good += kChunk;
  }
  FinishFrom(good);
}

TEST_F(ResumeTest, JournalTornAtEachPoint) {
  Leave(kMiB);  // four entries
  constexpr size_t kEntries = 4 * 48;
  for (size_t kept = 0; kept <= kEntries; kept += 7) {
    SCOPED_TRACE(kept);
    Leave(kMiB);
    // The header holds the temp file's inode: its length may differ each time.
    const std::string journal = ReadAll(Record());
    ASSERT_GT(journal.size() - kEntries, journal.find('\n') + 1);
    WriteAll(Record(), journal.substr(0, journal.size() - kEntries + kept));
    FinishFrom(kept / 48 * kChunk);
  }
}

TEST_F(ResumeTest, DamagedJournalHeaderMeansNothingIsLeft) {
  Leave(kMiB);
  test::FlipByte(Record(), 100);
  auto ingest = Open();
  EXPECT_EQ(ingest->partial_validator(), "");
  BIM_ASSERT_OK(ingest->Restore({}));
  EXPECT_FALSE(ingest->begun());
  BIM_ASSERT_OK(ingest->Begin(content_.size(), "new"));
  Feed(*ingest, content_, kMiB);
  ASSERT_TRUE(ingest->Commit({}).ok());
  ExpectReady(content_);
}

TEST_F(ResumeTest, AnotherTempFileIsNotTheOneJournaled) {
  Leave(kMiB);
  const std::string other = scratch_.Path("other");
  WriteAll(other, ReadAll(Temp()));
  std::filesystem::rename(other, Temp());
  EXPECT_EQ(Open()->partial_validator(), "");
}

TEST_F(ResumeTest, PlantedLinkIsNotATempFile) {
  Leave(kMiB);
  std::filesystem::rename(Temp(), scratch_.Path("victim"));
  std::filesystem::create_symlink(scratch_.Path("victim"), Temp());
  auto ingest = Open();
  EXPECT_EQ(ingest->partial_validator(), "");
  BIM_ASSERT_OK(ingest->Begin(kMiB, "v"));
  EXPECT_EQ(std::filesystem::file_size(scratch_.Path("victim")),
            content_.size());
}

TEST_F(ResumeTest, NewerJournalIsNotOursToOverwrite) {
  Leave(kMiB);
  std::string journal = ReadAll(Record());
  ASSERT_TRUE(journal.starts_with("bim-journal 1 1 "));
  journal.replace(0, 16, "bim-journal 9 9 ");
  WriteAll(Record(), journal);
  EXPECT_EQ(Ingest::Open(scratch_.disk, kKey, {}).status().code(),
            Code::kFailedPrecondition);
  EXPECT_EQ(ReadAll(Record()), journal);
  EXPECT_TRUE(Exists(Temp()));
}

TEST_F(ResumeTest, StoppedRestoreLosesNothing) {
  Leave(3 * kMiB);
  {
    auto ingest = Open();
    std::stop_source stop;
    stop.request_stop();
    EXPECT_EQ(ingest->Restore(stop.get_token()).code(), Code::kCancelled);
  }
  FinishFrom(3 * kMiB);
}

TEST_F(ResumeTest, RestoreAfterAnotherProcessClaimed) {
  Leave(3 * kMiB);
  scratch_.Restart();
  FinishFrom(3 * kMiB);
}

TEST_F(ResumeTest, CrashWithoutSuspendNeverVouchesForLostBytes) {
  // As after a power cut: the journal is ahead of the data.
  Leave(2 * kMiB);
  const uint64_t at = 5 * kChunk;
  base::UniqueFd fd(::open(Temp().c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(at)), 0);
  ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(content_.size())), 0);
  fd.Reset();
  uint64_t good = at;
  while (good < 2 * kMiB &&
         content_.find_first_not_of('\0', good) >= good + kChunk) {
    good += kChunk;
  }
  FinishFrom(good);
}

// --- reference

class ReferenceTest : public IngestTest {
 protected:
  IngestOptions With(const std::string& content) {
    auto record = std::make_shared<ImageRecord>();
    record->key = kKey;
    record->stamp.size = content.size();
    record->sha512 = Sha512(content);
    record->chunk_size = ChunkSizeFor(content.size());
    record->chunks = ChunksOf(content, record->chunk_size);
    record->chunk_count = static_cast<uint32_t>(record->chunks.size());
    IngestOptions options;
    options.reference = record;
    return options;
  }
  const std::string content_ = Content(4 * kMiB + 512, 8);
};

TEST_F(ReferenceTest, TheSameContentGetsItsDigests) {
  auto ingest = Open(With(content_));
  BIM_ASSERT_OK(ingest->Begin(content_.size(), "v"));
  Feed(*ingest, content_, 500'000);
  auto record = ingest->Commit({});
  ASSERT_TRUE(record.ok()) << record.status().ToString();
  EXPECT_EQ(record->sha512, Sha512(content_));
  ExpectReady(content_);
}

TEST_F(ReferenceTest, EveryDifferentChunkIsDataLoss) {
  for (uint64_t at : {uint64_t{0}, 5 * kChunk + 3, content_.size() - 1}) {
    SCOPED_TRACE(at);
    std::string other = content_;
    other[at] = static_cast<char>(other[at] ^ 1);
    auto ingest = Open(With(content_));
    BIM_ASSERT_OK(ingest->Begin(content_.size(), "v"));
    base::Status status = ingest->Append(AsBytes(other), {});
    if (status.ok()) status = ingest->Commit({}).status();
    EXPECT_EQ(status.code(), Code::kDataLoss) << status.ToString();
    ingest.reset();
    ExpectNothingPublished();
    BIM_ASSERT_OK(RemovePartial(*scratch_.disk, kKey));
  }
}

// --- stopping while blocked

TEST_F(IngestTest, StopWhileBlocked) {
  // With a stopped token nothing waits; what was taken counts as given.
  const std::string content = RandomBytes(64 * kMiB, 4);
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
  std::stop_source stop;
  std::promise<void> begun;
  std::thread stopper([&] {
    begun.get_future().wait();
    stop.request_stop();
  });
  base::Status status;
  uint64_t at = 0;
  bool told = false;
  while (at < content.size()) {
    status = ingest->Append(
        AsBytes(std::string_view(content).substr(at, 512 * kKiB)),
        stop.get_token());
    if (!status.ok()) break;
    at += 512 * kKiB;
    if (!told && at >= 8 * kMiB) {
      told = true;
      begun.set_value();
    }
  }
  stopper.join();
  if (!status.ok()) {
    EXPECT_EQ(status.code(), Code::kCancelled);
    // position() tells what came: going on there gives the same file.
    Feed(*ingest, std::string_view(content).substr(ingest->position()), kMiB);
  }
  ASSERT_EQ(ingest->position(), content.size());
  auto record = ingest->Commit({});
  ASSERT_TRUE(record.ok()) << record.status().ToString();
  EXPECT_EQ(record->sha512, Sha512(content));
}

TEST_F(IngestTest, StoppedTokenEndsAppendBeforeTheEnd) {
  const std::string content = RandomBytes(32 * kMiB, 4);
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(ingest->Append(AsBytes(content), stop.get_token()).code(),
            Code::kCancelled);
  EXPECT_EQ(ingest->AppendZeros(kMiB, stop.get_token()).code(),
            Code::kCancelled);
  EXPECT_LT(ingest->position(), content.size());
  Feed(*ingest, std::string_view(content).substr(ingest->position()), kMiB);
  std::stop_source stop_commit;
  auto record = ingest->Commit({});
  ASSERT_TRUE(record.ok()) << record.status().ToString();
  EXPECT_EQ(record->sha512, Sha512(content));
}

TEST_F(IngestTest, DestructionInTheMiddleNeverHangs) {
  const std::string content = RandomBytes(20 * kMiB, 4);
  for (size_t given : {size_t{0}, size_t{5}, size_t{10 * kMiB + 3}}) {
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
    Feed(*ingest, content.substr(0, given), kMiB);
    ingest.reset();
    auto again = Open();
    EXPECT_EQ(again->partial_validator(), "v");
    BIM_ASSERT_OK(again->Discard());
  }
}

// --- the rest of the contract

TEST_F(IngestTest, ALateOwnerPublishesNothing) {
  const std::string content = RandomBytes(kMiB, 1);
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(content.size(), "v"));
  Feed(*ingest, content, kMiB);
  auto owner = DecodeOwner(ReadAll(scratch_.Path(kOwnerFile)));
  owner->epoch += 1;
  WriteAll(scratch_.Path(kOwnerFile), EncodeOwner(*owner));
  EXPECT_EQ(ingest->Commit({}).status().code(), Code::kAborted);
  EXPECT_FALSE(Exists(File()));
  EXPECT_TRUE(Exists(Temp())) << "the bytes are kept";
}

TEST_F(IngestTest, UnsafeImageIsDeleted) {
  // A qcow2 header with a backing file name.
  std::string image(64 * kKiB, '\0');
  const unsigned char head[] = {'Q', 'F', 'I', 0xfb, 0, 0,   0, 2, 0, 0,
                                0,   0,   0,   0,    0, 200, 0, 0, 0, 10};
  std::copy(std::begin(head), std::end(head), image.begin());
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(image.size(), "v"));
  Feed(*ingest, image, 4096);
  const auto record = ingest->Commit({});
  EXPECT_FALSE(record.ok());
  EXPECT_TRUE(record.status().code() == Code::kFailedPrecondition ||
              record.status().code() == Code::kDataLoss)
      << record.status().ToString();
  ingest.reset();
  ExpectNothingKept();
}

TEST_F(IngestTest, DirectoryOfAnotherReadyImageIsRefused) {
  // "a-b" + "c" and "a" + "b-c" are the same directory.
  const ImageKey one{"a-b", "c"}, two{"a", "b-c"};
  ASSERT_EQ(ImageDir(one), ImageDir(two));
  {
    auto ingest = Open({}, one);
    BIM_ASSERT_OK(ingest->Begin(512, "v"));
    Feed(*ingest, RandomBytes(512, 1), 512);
    ASSERT_TRUE(ingest->Commit({}).ok());
  }
  EXPECT_EQ(Ingest::Open(scratch_.disk, two, {}).status().code(),
            Code::kAlreadyExists);
}

TEST_F(IngestTest, DirectoryOfAnotherImageInWorkIsRefused) {
  const ImageKey one{"a-b", "c"}, two{"a", "b-c"};
  {
    auto ingest = Open({}, one);
    BIM_ASSERT_OK(ingest->Begin(2 * kMiB, "v"));
    Feed(*ingest, RandomBytes(kMiB, 1), kMiB);
  }
  EXPECT_EQ(Ingest::Open(scratch_.disk, two, {}).status().code(),
            Code::kAlreadyExists);
  EXPECT_EQ(Open({}, one)->partial_validator(), "v");
}

TEST_F(IngestTest, ReadyFileKeepsItsRecordUntilTheRename) {
  const std::string first = RandomBytes(kMiB, 1);
  const std::string second = RandomBytes(2 * kMiB, 2);
  {
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Begin(first.size(), "v1"));
    Feed(*ingest, first, kMiB);
    ASSERT_TRUE(ingest->Commit({}).ok());
  }
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(second.size(), "v2"));
  Feed(*ingest, second.substr(0, kMiB), kMiB);
  EXPECT_EQ(ReadRecord(scratch_.disk->root(), kKey, true)->sha512,
            Sha512(first));
  EXPECT_TRUE(ReadAll(File()) == first);
  Feed(*ingest, second.substr(kMiB), kMiB);
  ASSERT_TRUE(ingest->Commit({}).ok());
  ingest.reset();
  ExpectReady(second);
}

TEST_F(IngestTest, DiscardKeepsAReadyFile) {
  const std::string first = RandomBytes(kMiB, 1);
  {
    auto ingest = Open();
    BIM_ASSERT_OK(ingest->Begin(first.size(), "v1"));
    Feed(*ingest, first, kMiB);
    ASSERT_TRUE(ingest->Commit({}).ok());
  }
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(2 * kMiB, "v2"));
  BIM_ASSERT_OK(ingest->Discard());
  ingest.reset();
  ExpectReady(first);
}

TEST_F(IngestTest, ProgressIsSeenFromAnotherThread) {
  auto ingest = Open();
  BIM_ASSERT_OK(ingest->Begin(48 * kMiB, "v"));
  std::atomic<bool> done{false};
  std::thread watcher([&] {
    uint64_t last = 0;
    while (!done.load()) {
      const uint64_t now = ingest->stored_bytes();
      EXPECT_GE(now, last);
      EXPECT_EQ(ingest->total_bytes(), 48 * kMiB);
      last = now;
      std::this_thread::yield();
    }
  });
  const std::string piece = RandomBytes(kMiB, 1);
  for (int i = 0; i < 48; ++i) {
    BIM_EXPECT_OK(ingest->Append(AsBytes(piece), {}));
  }
  const auto record = ingest->Commit({});
  done = true;
  watcher.join();
  ASSERT_TRUE(record.ok()) << record.status().ToString();
}

}  // namespace
}  // namespace bim::store
