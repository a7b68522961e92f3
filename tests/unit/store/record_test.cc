#include "pkg/store/record.h"

#include <gtest/gtest.h>

#include <random>

#include "pkg/meta/version.h"
#include "tests/unit/store/scratch.h"

namespace bim::store {
namespace {

using base::Code;
using test::ReadAll;
using test::Sha256;
using test::Sha512;
using test::TempDir;
using test::WriteAll;

const ImageKey kKey{"debian", "u-1"};

class RecordTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(dir_ / ImageDir(kKey));
    auto root = io::Dir::Open(dir_.path());
    ASSERT_TRUE(root.ok());
    root_ = *std::move(root);
  }
  void Put(std::string_view text) { WriteAll(dir_ / RecordFile(kKey), text); }

  TempDir dir_;
  io::Dir root_;
};

ImageRecord SomeRecord(size_t chunks) {
  ImageRecord record;
  record.key = kKey;
  record.stamp = {chunks * kMinChunkSize - 512, 42, 1'700'000'000'123'456'789,
                  -5};
  record.format = "qcow2";
  record.virtual_size = uint64_t{1} << 40;
  record.sha512 = Sha512("a");
  record.sha256 = Sha256("b");
  record.origin = "download \"quoted\" \n\xc3\xa9";
  record.verified_ns = 17;
  record.chunk_size = kMinChunkSize;
  record.chunks.resize(chunks);
  for (size_t i = 0; i < chunks; ++i) {
    record.chunks[i].zero = i % 2 == 1;
    if (!record.chunks[i].zero) {
      record.chunks[i].sha256.fill(static_cast<std::byte>(i + 1));
    }
  }
  record.chunk_count = static_cast<uint32_t>(chunks);
  return record;
}

void ExpectSame(const ImageRecord& a, const ImageRecord& b) {
  EXPECT_EQ(a.key, b.key);
  EXPECT_EQ(a.stamp, b.stamp);
  EXPECT_EQ(a.format, b.format);
  EXPECT_EQ(a.virtual_size, b.virtual_size);
  EXPECT_EQ(a.sha512, b.sha512);
  EXPECT_EQ(a.sha256, b.sha256);
  EXPECT_EQ(a.sha512_pending, b.sha512_pending);
  EXPECT_EQ(a.origin, b.origin);
  EXPECT_EQ(a.verified_ns, b.verified_ns);
  EXPECT_EQ(a.chunk_size, b.chunk_size);
  EXPECT_EQ(a.chunk_count, b.chunk_count);
}

// The envelope, written here once more.
std::string Enveloped(const std::string& magic, int version, int min_version,
                      const std::string& header) {
  return magic + " " + std::to_string(version) + " " +
         std::to_string(min_version) + " " + std::to_string(header.size()) +
         " " + Sha256(header).Hex() + "\n" + header;
}

TEST_F(RecordTest, RoundTrips) {
  for (size_t chunks : {1, 2, 3, 200}) {
    const ImageRecord record = SomeRecord(chunks);
    Put(EncodeRecord(record));
    auto whole = ReadRecord(root_, kKey, true);
    ASSERT_TRUE(whole.ok()) << whole.status().ToString();
    ExpectSame(*whole, record);
    EXPECT_EQ(whole->chunks, record.chunks);
    auto header = ReadRecord(root_, kKey, false);
    ASSERT_TRUE(header.ok()) << header.status().ToString();
    ExpectSame(*header, record);
    EXPECT_TRUE(header->chunks.empty());
  }
}

TEST_F(RecordTest, WithoutManifestAndSha256) {
  ImageRecord record = SomeRecord(1);
  record.chunks.clear();
  record.chunk_count = 0;
  record.sha256.reset();
  Put(EncodeRecord(record));
  auto whole = ReadRecord(root_, kKey, true);
  ASSERT_TRUE(whole.ok()) << whole.status().ToString();
  ExpectSame(*whole, record);
}

TEST_F(RecordTest, LargestTable) {
  const ImageRecord record = SomeRecord(kMaxChunks);
  Put(EncodeRecord(record));
  auto whole = ReadRecord(root_, kKey, true);
  ASSERT_TRUE(whole.ok()) << whole.status().ToString();
  EXPECT_EQ(whole->chunks, record.chunks);
}

TEST_F(RecordTest, LongHeaderIsReadWithoutTable) {
  ImageRecord record = SomeRecord(2);
  record.origin = std::string(20'000, 'x');
  Put(EncodeRecord(record));
  auto header = ReadRecord(root_, kKey, false);
  ASSERT_TRUE(header.ok()) << header.status().ToString();
  EXPECT_EQ(header->origin, record.origin);
}

TEST_F(RecordTest, NotFound) {
  EXPECT_EQ(ReadRecord(root_, kKey, true).status().code(), Code::kNotFound);
  EXPECT_EQ(ReadJournal(root_, kKey).status().code(), Code::kNotFound);
  Put(EncodeJournalHeader({kKey, 512, kMinChunkSize, "v", 1}));
  EXPECT_EQ(ReadRecord(root_, kKey, false).status().code(), Code::kNotFound);
  Put(EncodeRecord(SomeRecord(1)));
  EXPECT_EQ(ReadJournal(root_, kKey).status().code(), Code::kNotFound);
}

TEST_F(RecordTest, CutOffAtEveryByte) {
  const std::string text = EncodeRecord(SomeRecord(3));
  for (size_t length = 0; length < text.size(); ++length) {
    Put(text.substr(0, length));
    EXPECT_EQ(ReadRecord(root_, kKey, true).status().code(), Code::kDataLoss)
        << length;
    const auto header = ReadRecord(root_, kKey, false);
    if (length < text.size() - 3 * 33) {
      EXPECT_EQ(header.status().code(), Code::kDataLoss) << length;
    }
  }
}

TEST_F(RecordTest, EveryFlippedBitIsNoticedOrHarmless) {
  const ImageRecord record = SomeRecord(3);
  const std::string text = EncodeRecord(record);
  for (size_t at = 0; at < text.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = text;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      Put(flipped);
      const auto read = ReadRecord(root_, kKey, true);
      if (!read.ok()) continue;
      // Only the numbers of the first line may change unnoticed.
      ASSERT_LT(at, text.find('\n')) << at << " " << bit;
      ASSERT_EQ(read->sha512, record.sha512) << at << " " << bit;
      ASSERT_EQ(read->stamp, record.stamp) << at << " " << bit;
      ASSERT_EQ(read->chunks, record.chunks) << at << " " << bit;
    }
  }
}

TEST_F(RecordTest, OfAnotherImage) {
  ImageRecord record = SomeRecord(1);
  record.key.uuid = "u-2";
  Put(EncodeRecord(record));
  EXPECT_EQ(ReadRecord(root_, kKey, false).status().code(), Code::kDataLoss);
}

TEST_F(RecordTest, Versions) {
  const std::string text = EncodeRecord(SomeRecord(1));
  const size_t line = text.find('\n');
  const std::string header = text.substr(line + 1, text.size() - line - 1 - 33);
  const std::string table = text.substr(text.size() - 33);
  const int ours = meta::kDiskFormatVersion;
  Put(Enveloped("bim-record", ours + 1, ours, header) + table);
  BIM_EXPECT_OK(ReadRecord(root_, kKey, true).status());
  Put(Enveloped("bim-record", ours + 7, ours + 3, header) + table);
  const auto newer = ReadRecord(root_, kKey, true);
  EXPECT_EQ(newer.status().code(), Code::kFailedPrecondition);
  EXPECT_NE(newer.status().message().find(std::to_string(ours + 7)),
            std::string::npos)
      << newer.status().message();
  EXPECT_NE(newer.status().message().find(std::to_string(ours + 3)),
            std::string::npos);
}

TEST_F(RecordTest, WellFormedEnvelopeWithNonsenseIsDamaged) {
  for (const std::string& header :
       {std::string("[]"), std::string("null"), std::string("{"),
        std::string(R"({"name":"debian","uuid":"u-1"})"),
        std::string(R"({"name":"debian","uuid":"u-1","sha512":"xyz"})"),
        std::string(R"({"name":7,"uuid":"u-1"})")}) {
    Put(Enveloped("bim-record", 1, 1, header));
    EXPECT_EQ(ReadRecord(root_, kKey, true).status().code(), Code::kDataLoss)
        << header;
  }
}

TEST_F(RecordTest, TableThatDoesNotFitTheSizeIsDamaged) {
  ImageRecord record = SomeRecord(3);
  record.stamp.size = kMinChunkSize * 7;
  Put(EncodeRecord(record));
  EXPECT_EQ(ReadRecord(root_, kKey, true).status().code(), Code::kDataLoss);
}

TEST_F(RecordTest, PlantedLinkAndDirectoryAreErrors) {
  Put(EncodeRecord(SomeRecord(1)));
  const std::string path = dir_ / RecordFile(kKey);
  std::filesystem::rename(path, dir_ / "elsewhere");
  std::filesystem::create_symlink(dir_ / "elsewhere", path);
  EXPECT_EQ(ReadRecord(root_, kKey, false).status().code(),
            Code::kPermissionDenied);
  std::filesystem::remove(path);
  std::filesystem::create_directory(path);
  EXPECT_FALSE(ReadRecord(root_, kKey, false).ok());
  EXPECT_FALSE(ReadRecord(root_, kKey, true).ok());
}

TEST_F(RecordTest, Sha512PendingIsKept) {
  for (bool pending : {false, true}) {
    ImageRecord record = SomeRecord(3);
    record.sha512_pending = pending;
    const std::string text = EncodeRecord(record);
    // Records of proven images stay as older versions wrote them.
    EXPECT_EQ(text.find("sha512Pending") != std::string::npos, pending);
    Put(text);
    for (bool with_chunks : {false, true}) {
      const auto read = ReadRecord(root_, kKey, with_chunks);
      ASSERT_TRUE(read.ok()) << read.status().ToString();
      ExpectSame(*read, record);
    }
  }
}

TEST_F(RecordTest, OnlyTrueIsPending) {
  for (const char* value : {"false", "1", "0", "\"true\"", "null", "[true]"}) {
    ImageRecord record = SomeRecord(1);
    record.chunks.clear();
    record.chunk_count = 0;
    std::string header = EncodeRecord(record);
    header = header.substr(header.find('\n') + 1);
    header.insert(1, "\"sha512Pending\":" + std::string(value) + ",");
    Put(Enveloped("bim-record", 1, 1, header));
    const auto read = ReadRecord(root_, kKey, true);
    ASSERT_TRUE(read.ok()) << read.status().ToString();
    EXPECT_FALSE(read->sha512_pending) << value;
  }
}

TEST_F(RecordTest, EveryFlippedBitOfAPendingOneIsNoticedOrHarmless) {
  ImageRecord record = SomeRecord(2);
  record.sha512_pending = true;
  const std::string text = EncodeRecord(record);
  for (size_t at = 0; at < text.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = text;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      Put(flipped);
      for (bool with_chunks : {false, true}) {
        const auto read = ReadRecord(root_, kKey, with_chunks);
        if (!read.ok()) continue;
        ASSERT_TRUE(read->sha512_pending) << at << " " << bit;
      }
    }
  }
}

// --- manifests, as peers send them

// The header of what EncodeManifest made, to be changed.
struct Taken {
  std::string header;
  std::string table;
};
Taken TakeApart(const std::string& text) {
  const size_t line = text.find('\n');
  const size_t end = text.find('}', line) + 1;  // the header has no other one
  return {text.substr(line + 1, end - line - 1), text.substr(end)};
}
std::string Replaced(std::string text, const std::string& from,
                     const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  if (at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}
std::string Manifest(const std::string& header, const std::string& table) {
  return Enveloped("bim-manifest", 1, 1, header) + table;
}

// What a peer is told of `record`.
ImageRecord Told(ImageRecord record) {
  record.stamp = {.size = record.stamp.size};
  record.sha512_pending = false;
  record.origin.clear();
  record.verified_ns = 0;
  return record;
}

TEST(ManifestTextTest, RoundTrips) {
  for (size_t chunks :
       {size_t{1}, size_t{2}, size_t{3}, size_t{200}, size_t{kMaxChunks}}) {
    for (bool sha256 : {false, true}) {
      ImageRecord record = SomeRecord(chunks);
      if (!sha256) record.sha256.reset();
      const std::string text = EncodeManifest(record);
      EXPECT_LE(text.size(), kMaxManifest);
      const auto read = DecodeManifest(text);
      ASSERT_TRUE(read.ok()) << read.status().ToString();
      ExpectSame(*read, Told(record));
      EXPECT_EQ(read->chunks, record.chunks);
    }
  }
}

TEST(ManifestTextTest, WithoutChunks) {
  ImageRecord record = SomeRecord(3);
  record.chunks.clear();
  record.chunk_count = 0;
  const auto read = DecodeManifest(EncodeManifest(record));
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  ExpectSame(*read, Told(record));
  EXPECT_TRUE(read->chunks.empty());
}

TEST(ManifestTextTest, TellsNothingOfTheDisk) {
  ImageRecord record = SomeRecord(3);
  record.sha512_pending = true;
  record.stamp.inode = 987'654'321;
  const std::string text = EncodeManifest(record);
  for (const char* word : {"987654321", "mtime", "ctime", "origin", "download",
                           "verified", "ending"}) {
    EXPECT_EQ(text.find(word), std::string::npos) << word;
  }
  const auto read = DecodeManifest(text);
  ASSERT_TRUE(read.ok());
  ExpectSame(*read, Told(record));
}

TEST(ManifestTextTest, WhatIsOfADiskIsNotTakenFromAPeer) {
  const Taken own = TakeApart(EncodeManifest(SomeRecord(2)));
  std::string header = own.header;
  header.insert(1, R"("inode":5,"mtimeNs":6,"ctimeNs":7,"origin":"me",)"
                   R"("verifiedNs":8,"sha512Pending":true,)");
  const auto read = DecodeManifest(Manifest(header, own.table));
  ASSERT_TRUE(read.ok()) << read.status().ToString();
  ExpectSame(*read, Told(SomeRecord(2)));
}

TEST(ManifestTextTest, CutOffAtEveryByteOrLonger) {
  const std::string text = EncodeManifest(SomeRecord(3));
  for (size_t length = 0; length < text.size(); ++length) {
    ASSERT_EQ(DecodeManifest(text.substr(0, length)).status().code(),
              Code::kDataLoss)
        << length;
  }
  for (const std::string& more : {std::string(1, 'x'), std::string(33, '\0')}) {
    EXPECT_EQ(DecodeManifest(text + more).status().code(), Code::kDataLoss);
    // Also behind one without a table.
    ImageRecord record = SomeRecord(3);
    record.chunks.clear();
    EXPECT_EQ(DecodeManifest(EncodeManifest(record) + more).status().code(),
              Code::kDataLoss);
  }
}

TEST(ManifestTextTest, EveryFlippedBitIsNoticedOrHarmless) {
  const ImageRecord record = SomeRecord(3);
  const std::string text = EncodeManifest(record);
  for (size_t at = 0; at < text.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = text;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      const auto read = DecodeManifest(flipped);
      if (!read.ok()) {
        ASSERT_TRUE(read.status().code() == Code::kDataLoss ||
                    read.status().code() == Code::kFailedPrecondition)
            << read.status().ToString();
        continue;
      }
      // Only the version numbers of the first line.
      ASSERT_LT(at, text.find('\n')) << at << " " << bit;
      ASSERT_EQ(read->sha512, record.sha512);
      ASSERT_EQ(read->chunks, record.chunks);
    }
  }
}

TEST(ManifestTextTest, Versions) {
  const Taken own = TakeApart(EncodeManifest(SomeRecord(2)));
  const int ours = meta::kDiskFormatVersion;
  BIM_EXPECT_OK(
      DecodeManifest(Enveloped("bim-manifest", ours + 5, ours, own.header) +
                     own.table)
          .status());
  const auto newer = DecodeManifest(
      Enveloped("bim-manifest", ours + 7, ours + 3, own.header) + own.table);
  EXPECT_EQ(newer.status().code(), Code::kFailedPrecondition);
  EXPECT_NE(newer.status().message().find(std::to_string(ours + 7)),
            std::string::npos)
      << newer.status().message();
}

TEST(ManifestTextTest, OtherThings) {
  for (const std::string& text :
       {std::string(), std::string("\n"), std::string("<html></html>\n"),
        std::string(1'000, '\0'), std::string(1'000, 'x'),
        std::string("bim-manifest\n"), std::string("bim-manifest 1 1 -5 00\n"),
        std::string("bim-manifest 1 1 999999999 00\n"),
        EncodeRecord(SomeRecord(2)),
        EncodeJournalHeader({kKey, 512, kMinChunkSize, "v", 1}),
        Manifest("[]", ""), Manifest("null", ""), Manifest("{", ""),
        Manifest("{}", ""), Manifest(std::string(60'000, '['), "")}) {
    EXPECT_EQ(DecodeManifest(text).status().code(), Code::kDataLoss)
        << text.substr(0, 100);
  }
  std::string longer = EncodeManifest(SomeRecord(kMaxChunks));
  longer.resize(kMaxManifest + 1);
  EXPECT_EQ(DecodeManifest(longer).status().code(), Code::kDataLoss);
}

TEST(ManifestTextTest, OddNumbers) {
  const ImageRecord record = SomeRecord(3);
  const Taken own = TakeApart(EncodeManifest(record));
  BIM_EXPECT_OK(DecodeManifest(Manifest(own.header, own.table)).status());
  ImageRecord none = record;
  none.chunks.clear();
  const Taken bare = TakeApart(EncodeManifest(none));
  BIM_EXPECT_OK(DecodeManifest(Manifest(bare.header, "")).status());

  const std::string size = "\"size\":" + std::to_string(record.stamp.size);
  for (const char* odd :
       {"0", "1", "511", "785919", "-512", "-1", "786432.5", "1e3", "null",
        "\"786432\"", "[]", "true", "18446744073709551104",
        "9223372036854775808", "99999999999999999999999"}) {
    const std::string to = "\"size\":" + std::string(odd);
    EXPECT_EQ(
        DecodeManifest(Manifest(Replaced(own.header, size, to), own.table))
            .status()
            .code(),
        Code::kDataLoss)
        << odd;
    EXPECT_EQ(DecodeManifest(Manifest(Replaced(bare.header, size, to), ""))
                  .status()
                  .code(),
              Code::kDataLoss)
        << odd;
  }
  // Another size that is an image's, but not of three chunks.
  for (uint64_t other : {kMinChunkSize * 2, kMinChunkSize * 3 + 512,
                         uint64_t{512}, uint64_t{1} << 62}) {
    EXPECT_EQ(
        DecodeManifest(Manifest(Replaced(own.header, size,
                                         "\"size\":" + std::to_string(other)),
                                own.table))
            .status()
            .code(),
        Code::kDataLoss)
        << other;
  }
  const std::string chunk_size =
      "\"chunkSize\":" + std::to_string(kMinChunkSize);
  for (const char* odd : {"0", "1", "131072", "262143", "524288", "-262144",
                          "null", "9223372036854775808"}) {
    EXPECT_EQ(
        DecodeManifest(Manifest(Replaced(own.header, chunk_size,
                                         "\"chunkSize\":" + std::string(odd)),
                                own.table))
            .status()
            .code(),
        Code::kDataLoss)
        << odd;
  }
}

TEST(ManifestTextTest, ChunkCountThatDoesNotFit) {
  const ImageRecord record = SomeRecord(3);
  const Taken own = TakeApart(EncodeManifest(record));
  for (const char* odd : {"0", "1", "2", "4", "-3", "null", "65537",
                          "4294967296", "4294967299", "18446744073709551615"}) {
    EXPECT_EQ(
        DecodeManifest(Manifest(Replaced(own.header, "\"chunkCount\":3",
                                         "\"chunkCount\":" + std::string(odd)),
                                own.table))
            .status()
            .code(),
        Code::kDataLoss)
        << odd;
  }
  // A table of another length with its right digest.
  for (size_t count : {1, 2, 4}) {
    ImageRecord other = record;
    other.chunks.resize(count);
    EXPECT_EQ(DecodeManifest(EncodeManifest(other)).status().code(),
              Code::kDataLoss)
        << count;
  }
  // A chunk that is neither zero nor not.
  std::string table = own.table;
  table[33] = 2;
  EXPECT_EQ(
      DecodeManifest(Manifest(Replaced(own.header, Sha256(own.table).Hex(),
                                       Sha256(table).Hex()),
                              table))
          .status()
          .code(),
      Code::kDataLoss);
  // Of a chunk too many, or of half a one.
  for (const std::string& longer :
       {own.table + own.table.substr(0, 33), own.table + "x"}) {
    EXPECT_EQ(
        DecodeManifest(Manifest(Replaced(own.header, Sha256(own.table).Hex(),
                                         Sha256(longer).Hex()),
                                longer))
            .status()
            .code(),
        Code::kDataLoss);
  }
}

TEST(ManifestTextTest, OddDigests) {
  const ImageRecord record = SomeRecord(1);
  const Taken own = TakeApart(EncodeManifest(record));
  for (const base::Digest& digest : {record.sha512, *record.sha256}) {
    for (const std::string& odd :
         {std::string(), std::string("00"),
          std::string(digest.Hex().size(), 'g'), digest.Hex() + "00"}) {
      EXPECT_EQ(DecodeManifest(Manifest(Replaced(own.header, digest.Hex(), odd),
                                        own.table))
                    .status()
                    .code(),
                Code::kDataLoss);
    }
  }
}

// --- journal

Chunk SomeChunk(uint32_t i) {
  Chunk chunk;
  chunk.zero = i % 3 == 2;
  if (!chunk.zero) chunk.sha256.fill(static_cast<std::byte>(i + 1));
  return chunk;
}

class JournalTest : public RecordTest {
 protected:
  const JournalHeader header_{kKey, 5 * kMinChunkSize + 512, kMinChunkSize,
                              "\"etag\"", 99};
};

TEST_F(JournalTest, RoundTrips) {
  std::string text = EncodeJournalHeader(header_);
  text += EncodeJournalEntry(4, SomeChunk(4));
  text += EncodeJournalEntry(0, SomeChunk(0));
  text += EncodeJournalEntry(2, SomeChunk(2));
  Put(text);
  const auto journal = ReadJournal(root_, kKey);
  ASSERT_TRUE(journal.ok()) << journal.status().ToString();
  EXPECT_EQ(journal->header.key, kKey);
  EXPECT_EQ(journal->header.size, header_.size);
  EXPECT_EQ(journal->header.chunk_size, header_.chunk_size);
  EXPECT_EQ(journal->header.validator, header_.validator);
  EXPECT_EQ(journal->header.inode, header_.inode);
  ASSERT_EQ(journal->chunks.size(), 6u);
  for (uint32_t i : {0, 2, 4}) EXPECT_EQ(journal->chunks[i], SomeChunk(i));
  for (uint32_t i : {1, 3, 5}) EXPECT_FALSE(journal->chunks[i]);
}

TEST_F(JournalTest, AnEntryHas48Bytes) {
  EXPECT_EQ(EncodeJournalEntry(0, SomeChunk(0)).size(), 48u);
}

TEST_F(JournalTest, TornAtEveryByteKeepsTheWholeEntries) {
  const std::string head = EncodeJournalHeader(header_);
  std::string text = head;
  for (uint32_t i = 0; i < 4; ++i) text += EncodeJournalEntry(i, SomeChunk(i));
  for (size_t length = 0; length <= text.size(); ++length) {
    Put(text.substr(0, length));
    const auto journal = ReadJournal(root_, kKey);
    if (length < head.size()) {
      EXPECT_EQ(journal.status().code(), Code::kDataLoss) << length;
      continue;
    }
    ASSERT_TRUE(journal.ok()) << length << journal.status().ToString();
    const size_t whole = (length - head.size()) / 48;
    for (uint32_t i = 0; i < 6; ++i) {
      if (i < whole) {
        EXPECT_EQ(journal->chunks[i], SomeChunk(i)) << length;
      } else {
        EXPECT_FALSE(journal->chunks[i]) << length;
      }
    }
  }
}

TEST_F(JournalTest, TornTailOfOtherBytesIsLeftOut) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    Put(EncodeJournalHeader(header_) + EncodeJournalEntry(0, SomeChunk(0)) +
        test::RandomBytes(seed * 5, seed) +
        EncodeJournalEntry(1, SomeChunk(1)));
    const auto journal = ReadJournal(root_, kKey);
    ASSERT_TRUE(journal.ok());
    EXPECT_TRUE(journal->chunks[0]);
    if (seed > 0) {
      EXPECT_FALSE(journal->chunks[1]) << seed;
    }
  }
}

TEST_F(JournalTest, EveryFlippedBitOfAnEntryEndsTheJournalThere) {
  const std::string head = EncodeJournalHeader(header_);
  const std::string text = head + EncodeJournalEntry(0, SomeChunk(0)) +
                           EncodeJournalEntry(1, SomeChunk(1)) +
                           EncodeJournalEntry(2, SomeChunk(2));
  for (size_t at = head.size() + 48; at < head.size() + 96; ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = text;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      Put(flipped);
      const auto journal = ReadJournal(root_, kKey);
      ASSERT_TRUE(journal.ok());
      ASSERT_EQ(journal->chunks[0], SomeChunk(0));
      ASSERT_FALSE(journal->chunks[1]) << at << " " << bit;
      ASSERT_FALSE(journal->chunks[2]) << at << " " << bit;
    }
  }
}

TEST_F(JournalTest, EveryFlippedBitOfTheHeaderIsNoticedOrHarmless) {
  const std::string head = EncodeJournalHeader(header_);
  for (size_t at = 0; at < head.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = head + EncodeJournalEntry(0, SomeChunk(0));
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      Put(flipped);
      const auto journal = ReadJournal(root_, kKey);
      if (!journal.ok()) continue;
      ASSERT_LT(at, head.find('\n'));
      ASSERT_EQ(journal->header.validator, header_.validator);
      ASSERT_EQ(journal->header.size, header_.size);
      ASSERT_EQ(journal->header.inode, header_.inode);
    }
  }
}

TEST_F(JournalTest, EntryBeyondTheFileEndsTheJournal) {
  Put(EncodeJournalHeader(header_) + EncodeJournalEntry(6, SomeChunk(1)) +
      EncodeJournalEntry(0, SomeChunk(0)));
  const auto journal = ReadJournal(root_, kKey);
  ASSERT_TRUE(journal.ok());
  EXPECT_FALSE(journal->chunks[0]);
}

TEST_F(JournalTest, NotOfThisImage) {
  for (JournalHeader header :
       {JournalHeader{{"debian", "u-2"}, 512, kMinChunkSize, "v", 1},
        JournalHeader{kKey, 0, kMinChunkSize, "v", 1},
        JournalHeader{kKey, 512, kMinChunkSize * 3, "v", 1},
        JournalHeader{kKey, 512, 0, "v", 1}}) {
    Put(EncodeJournalHeader(header));
    EXPECT_EQ(ReadJournal(root_, kKey).status().code(), Code::kDataLoss);
  }
}

TEST_F(JournalTest, ValidatorOfAnyBytesDoesNotThrow) {
  // An ETag may hold bytes above 0x7f (RFC 9110 8.8.3, obs-text).
  for (const std::string& validator :
       {std::string("\"\xff\xfe\""), std::string("\"\xe4\""),
        std::string("a\0b", 3)}) {
    JournalHeader header = header_;
    header.validator = validator;
    ASSERT_NO_THROW({ Put(EncodeJournalHeader(header)); });
    const auto journal = ReadJournal(root_, kKey);
    ASSERT_TRUE(journal.ok()) << journal.status().ToString();
  }
}

// --- stamps and times

TEST(FileStampTest, Matches) {
  const FileStamp base{1, 2, 3, 4};
  EXPECT_TRUE(Matches(base, base));
  EXPECT_FALSE(Matches(base, {9, 2, 3, 4}));
  EXPECT_FALSE(Matches(base, {1, 9, 3, 4}));
  EXPECT_FALSE(Matches(base, {1, 2, 9, 4}));
  EXPECT_FALSE(Matches(base, {1, 2, 3, 9}));
  EXPECT_TRUE(Matches({1, 2, 3, 0}, {1, 2, 3, 9}));
  EXPECT_FALSE(Matches({1, 2, 3, 0}, {1, 2, 4, 9}));
  EXPECT_FALSE(Matches({1, 2, 3, 4}, {1, 2, 3, 0}));
}

TEST(FileStampTest, OfAFile) {
  struct stat st = {};
  st.st_size = 7;
  st.st_ino = 8;
  st.st_mtim = {1'700'000'000, 123};
  st.st_ctim = {1'700'000'001, 999'999'999};
  EXPECT_EQ(StampOf(st), (FileStamp{7, 8, 1'700'000'000'000'000'123,
                                    1'700'000'001'999'999'999}));
}

TEST(FormatModificationTimeTest, Vectors) {
  // Go: time.Time.UTC().String().
  const auto ns = [](int64_t seconds, int64_t nanoseconds) {
    return seconds * 1'000'000'000 + nanoseconds;
  };
  EXPECT_EQ(FormatModificationTime(0), "1970-01-01 00:00:00 +0000 UTC");
  EXPECT_EQ(FormatModificationTime(ns(1'795'218'514, 567'157'303)),
            "2026-11-20 23:48:34.567157303 +0000 UTC");
  EXPECT_EQ(FormatModificationTime(ns(1'795'218'514, 0)),
            "2026-11-20 23:48:34 +0000 UTC");
  EXPECT_EQ(FormatModificationTime(ns(1'795'218'514, 500'000'000)),
            "2026-11-20 23:48:34.5 +0000 UTC");
  EXPECT_EQ(FormatModificationTime(ns(1'795'218'514, 1)),
            "2026-11-20 23:48:34.000000001 +0000 UTC");
  EXPECT_EQ(FormatModificationTime(ns(1'795'218'514, 120)),
            "2026-11-20 23:48:34.00000012 +0000 UTC");
  EXPECT_EQ(FormatModificationTime(ns(951'782'399, 999'999'999)),
            "2000-02-28 23:59:59.999999999 +0000 UTC");
  EXPECT_EQ(FormatModificationTime(ns(951'782'400, 0)),
            "2000-02-29 00:00:00 +0000 UTC");
  EXPECT_EQ(FormatModificationTime(-1),
            "1969-12-31 23:59:59.999999999 +0000 UTC");
  EXPECT_EQ(FormatModificationTime(ns(-1, 0)), "1969-12-31 23:59:59 +0000 UTC");
  EXPECT_EQ(FormatModificationTime(ns(-2, 500'000'000)),
            "1969-12-31 23:59:58.5 +0000 UTC");
}

// --- Longhorn's cfg

TEST_F(RecordTest, ConfigRoundTrips) {
  LonghornConfig config{
      "/d/backing-images/a-u/backing", "u", 1024, 2048, 512, "", "cc",
      "2026-11-20 23:48:34 +0000 UTC"};
  WriteAll(dir_ / ConfigFile(kKey), EncodeConfig(config));
  EXPECT_EQ(EncodeConfig(config),
            R"({"name":"/d/backing-images/a-u/backing","uuid":"u","size":1024,)"
            R"("virtualSize":2048,"realSize":512,"expectedChecksum":"",)"
            R"("currentChecksum":"cc",)"
            R"("modificationTime":"2026-11-20 23:48:34 +0000 UTC"})");
  const auto read = ReadConfig(root_, kKey);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->file_path, config.file_path);
  EXPECT_EQ(read->uuid, config.uuid);
  EXPECT_EQ(read->size, config.size);
  EXPECT_EQ(read->virtual_size, config.virtual_size);
  EXPECT_EQ(read->real_size, config.real_size);
  EXPECT_EQ(read->current_checksum, config.current_checksum);
  EXPECT_EQ(read->modification_time, config.modification_time);
}

TEST_F(RecordTest, ConfigDamaged) {
  EXPECT_EQ(ReadConfig(root_, kKey).status().code(), Code::kNotFound);
  for (const char* text : {"", "x", "[]", "{\"uuid\":"}) {
    WriteAll(dir_ / ConfigFile(kKey), text);
    EXPECT_EQ(ReadConfig(root_, kKey).status().code(), Code::kDataLoss) << text;
  }
  WriteAll(dir_ / ConfigFile(kKey), R"({"uuid":7,"size":"x"})");
  const auto odd = ReadConfig(root_, kKey);
  ASSERT_TRUE(odd.ok());
  EXPECT_EQ(odd->uuid, "");
  EXPECT_EQ(odd->size, 0u);
}

TEST_F(RecordTest, ConfigOfAPathOfAnyBytesDoesNotThrow) {
  LonghornConfig config;
  config.file_path = "/disks/caf\xe9/backing";  // Latin-1
  EXPECT_NO_THROW({ (void)EncodeConfig(config); });
}

}  // namespace
}  // namespace bim::store
