#include "pkg/store/publish.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <random>

#include "pkg/store/ingest.h"
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
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Kind = Found::Kind;

const ImageKey kKey{"debian", "u-1"};
constexpr uint64_t kMiB = 1024 * 1024;

class PublishTest : public ::testing::Test {
 protected:
  void MakeReady() {
    auto ingest = Ingest::Open(scratch_.disk, kKey, {});
    ASSERT_TRUE(ingest.ok());
    BIM_ASSERT_OK((*ingest)->Begin(content_.size(), "v"));
    BIM_ASSERT_OK((*ingest)->Append(AsBytes(content_), {}));
    auto record = (*ingest)->Commit({});
    ASSERT_TRUE(record.ok()) << record.status().ToString();
  }
  // The record as it is between seal and final write.
  void Seal() {
    auto record = ReadRecord(disk().root(), kKey, true);
    ASSERT_TRUE(record.ok());
    record->stamp.ctime_ns = 0;
    WriteAll(Path(RecordFile(kKey)), EncodeRecord(*record));
    std::filesystem::remove(Path(ConfigFile(kKey)));
  }
  Found Look() {
    auto found = Inspect(disk(), kKey, 0644, "");
    EXPECT_TRUE(found.ok()) << found.status().ToString();
    return found.ok() ? *found : Found();
  }
  const Disk& disk() { return *scratch_.disk; }
  std::string Path(const std::string& relative) {
    return scratch_.Path(relative);
  }
  std::string File() { return Path(DataFile(kKey)); }

  ScratchDisk scratch_;
  const std::string content_ = RandomBytes(3 * kMiB + 512, 1);
};

TEST_F(PublishTest, WhatIsInWorkIsCounted) {
  const auto count = [&] {
    const auto counted = CountUnfinished(disk().root());
    EXPECT_TRUE(counted.ok()) << counted.status().ToString();
    return counted.ok() ? std::pair(counted->resumable, counted->others)
                        : std::pair<size_t, size_t>(99, 99);
  };
  using Counts = std::pair<size_t, size_t>;
  EXPECT_EQ(count(), Counts(0, 0));
  MakeReady();
  EXPECT_EQ(count(), Counts(0, 0));
  for (const char* name : {"a", "a-b", "c"}) {
    auto ingest = Ingest::Open(scratch_.disk, {name, "u-2"}, {});
    ASSERT_TRUE(ingest.ok());
    BIM_ASSERT_OK((*ingest)->Begin(content_.size(), "v"));
    BIM_ASSERT_OK((*ingest)->Append(AsBytes(content_).first(2 * kMiB), {}));
  }
  EXPECT_EQ(count(), Counts(3, 0));
  std::filesystem::remove(Path(RecordFile({"c", "u-2"})));
  WriteAll(Path("backing-images/odd"), "");
  std::filesystem::create_directories(Path("backing-images/empty-dir"));
  EXPECT_EQ(count(), Counts(2, 1));
  std::filesystem::remove_all(Path("backing-images"));
  EXPECT_EQ(count(), Counts(0, 0));
}

// --- Inspect after every crash state

TEST_F(PublishTest, NothingThere) {
  EXPECT_EQ(Look().kind, Kind::kNothing);
  BIM_ASSERT_OK(MakeImageDir(disk(), kKey));
  BIM_ASSERT_OK(MakeImageDir(disk(), kKey));
  EXPECT_EQ(Look().kind, Kind::kNothing);
}

TEST_F(PublishTest, SealedNotRenamedIsFinished) {
  MakeReady();
  Seal();
  std::filesystem::rename(File(), Path(TempFile(kKey)));
  scratch_.Restart();
  const Found found = Look();
  EXPECT_EQ(found.kind, Kind::kReady);
  EXPECT_EQ(found.record.sha512, Sha512(content_));
  EXPECT_TRUE(ReadAll(File()) == content_);
  EXPECT_FALSE(Exists(Path(TempFile(kKey))));
  EXPECT_TRUE(Exists(Path(ConfigFile(kKey))));
  const auto record = ReadRecord(disk().root(), kKey, true);
  ASSERT_TRUE(record.ok());
  EXPECT_NE(record->stamp.ctime_ns, 0);
  EXPECT_EQ(record->chunks.size(), 13u);
  EXPECT_EQ(Look().kind, Kind::kReady);
}

TEST_F(PublishTest, SealedButTheTempFileIsAnother) {
  MakeReady();
  Seal();
  std::filesystem::remove(File());
  WriteAll(Path(TempFile(kKey)), content_);
  EXPECT_EQ(Look().kind, Kind::kNothing);
  EXPECT_FALSE(Exists(File()));
}

TEST_F(PublishTest, SealedButTouchedSince) {
  MakeReady();
  Seal();
  std::filesystem::rename(File(), Path(TempFile(kKey)));
  test::FlipByte(Path(TempFile(kKey)), 1000);
  EXPECT_EQ(Look().kind, Kind::kNothing);
}

TEST_F(PublishTest, RenamedNotRecordedIsFinished) {
  MakeReady();
  Seal();
  scratch_.Restart();
  const Found found = Look();
  EXPECT_EQ(found.kind, Kind::kReady);
  EXPECT_EQ(found.record.sha512, Sha512(content_));
  const auto record = ReadRecord(disk().root(), kKey, true);
  ASSERT_TRUE(record.ok());
  EXPECT_NE(record->stamp.ctime_ns, 0);
  EXPECT_TRUE(ReadConfig(disk().root(), kKey).ok());
}

TEST_F(PublishTest, JournalAndTempFileAreNothing) {
  {
    auto ingest = Ingest::Open(scratch_.disk, kKey, {});
    BIM_ASSERT_OK((*ingest)->Begin(content_.size(), "v"));
    BIM_ASSERT_OK((*ingest)->Append(AsBytes(content_), {}));
  }
  EXPECT_EQ(Look().kind, Kind::kNothing);
  EXPECT_TRUE(Exists(Path(TempFile(kKey)))) << "left for a resume";
}

TEST_F(PublishTest, SealedReplacementOfAReadyFileIsFinished) {
  // A better file was sealed; the crash came before it took the old one's
  // place.
  MakeReady();
  const std::string old = RandomBytes(kMiB, 9);
  Seal();
  std::filesystem::rename(File(), Path(TempFile(kKey)));
  WriteAll(File(), old);
  const Found found = Look();
  EXPECT_EQ(found.kind, Kind::kReady);
  EXPECT_TRUE(ReadAll(File()) == content_);
}

// --- Inspect of what others left

TEST_F(PublishTest, ModifiedFileIsChanged) {
  MakeReady();
  EXPECT_EQ(Look().kind, Kind::kReady);
  test::FlipByte(File(), 7);
  const Found found = Look();
  EXPECT_EQ(found.kind, Kind::kChanged);
  EXPECT_EQ(found.record.sha512, Sha512(content_));
  EXPECT_EQ(found.stamp.size, content_.size());
}

TEST_F(PublishTest, SameBytesRewrittenWithTheOldTimeIsChanged) {
  MakeReady();
  struct stat st = {};
  ASSERT_EQ(::stat(File().c_str(), &st), 0);
  test::FlipByte(File(), 7);
  const struct timespec times[2] = {st.st_atim, st.st_mtim};
  ASSERT_EQ(::utimensat(AT_FDCWD, File().c_str(), times, 0), 0);
  EXPECT_EQ(Look().kind, Kind::kChanged) << "ctime tells";
}

TEST_F(PublishTest, OnlyLonghornsConfig) {
  MakeReady();
  std::filesystem::remove(Path(RecordFile(kKey)));
  Found found = Look();
  EXPECT_EQ(found.kind, Kind::kReady);
  EXPECT_TRUE(found.by_config);
  EXPECT_EQ(found.record.sha512, Sha512(content_));
  EXPECT_EQ(found.record.format, "raw");
  EXPECT_EQ(found.record.chunk_count, 0u);
  EXPECT_EQ(found.record.stamp, found.stamp);
  // Another mtime: not vouched for.
  std::filesystem::last_write_time(
      File(), std::filesystem::file_time_type::clock::now());
  EXPECT_EQ(Look().kind, Kind::kUnproven);
}

TEST_F(PublishTest, LonghornsConfigThatDoesNotFit) {
  MakeReady();
  std::filesystem::remove(Path(RecordFile(kKey)));
  const auto config = ReadConfig(disk().root(), kKey);
  ASSERT_TRUE(config.ok());
  for (int i = 0; i < 4; ++i) {
    LonghornConfig odd = *config;
    if (i == 0) odd.uuid = "u-2";
    if (i == 1) odd.size += 512;
    if (i == 2) odd.current_checksum = "abc";
    if (i == 3) odd.modification_time = "";
    WriteAll(Path(ConfigFile(kKey)), EncodeConfig(odd));
    EXPECT_EQ(Look().kind, Kind::kUnproven) << i;
  }
}

TEST_F(PublishTest, DamagedRecordFallsBackToTheConfig) {
  MakeReady();
  test::FlipByte(Path(RecordFile(kKey)), 120);
  const Found found = Look();
  EXPECT_EQ(found.kind, Kind::kReady);
  EXPECT_TRUE(found.by_config);
}

TEST_F(PublishTest, FileOfWhichNothingIsKnown) {
  BIM_ASSERT_OK(MakeImageDir(disk(), kKey));
  WriteAll(File(), content_);
  EXPECT_EQ(Look().kind, Kind::kUnproven);
}

TEST_F(PublishTest, NewerRecordIsRefused) {
  MakeReady();
  std::string text = ReadAll(Path(RecordFile(kKey)));
  text.replace(0, 15, "bim-record 9 9 ");
  WriteAll(Path(RecordFile(kKey)), text);
  EXPECT_EQ(Inspect(disk(), kKey, 0644, "").status().code(),
            Code::kFailedPrecondition);
  BIM_EXPECT_OK(RemovePartial(disk(), kKey));
  EXPECT_TRUE(Exists(Path(RecordFile(kKey))))
      << "the record of a ready file is no leftover";
}

TEST_F(PublishTest, DamagedRecordOfAReadyFileIsNotInWork) {
  MakeReady();
  WriteAll(Path(TempFile(kKey)), "x");
  BIM_EXPECT_OK(RemovePartial(disk(), kKey));
  EXPECT_TRUE(Exists(Path(RecordFile(kKey))));
  EXPECT_FALSE(Exists(Path(TempFile(kKey))));
  EXPECT_EQ(Look().kind, Kind::kReady);
}

TEST_F(PublishTest, LinkOrFifoInPlaceOfTheFile) {
  BIM_ASSERT_OK(MakeImageDir(disk(), kKey));
  WriteAll(Path("victim"), content_);
  std::filesystem::create_symlink(Path("victim"), File());
  EXPECT_FALSE(Inspect(disk(), kKey, 0644, "").ok());
  EXPECT_FALSE(Scan(disk(), kKey, false, {}, nullptr).ok());
  std::filesystem::remove(File());
  ASSERT_EQ(::mkfifo(File().c_str(), 0600), 0);
  EXPECT_FALSE(Inspect(disk(), kKey, 0644, "").ok());
  EXPECT_FALSE(Scan(disk(), kKey, false, {}, nullptr).ok());
}

// --- Scan

TEST_F(PublishTest, ScanGivesDigestsChunksAndFormat) {
  MakeReady();
  std::vector<uint64_t> seen;
  const auto scan = Scan(disk(), kKey, true, {}, [&](uint64_t done, uint64_t) {
    seen.push_back(done);
  });
  ASSERT_TRUE(scan.ok()) << scan.status().ToString();
  const auto record = ReadRecord(disk().root(), kKey, true);
  EXPECT_EQ(scan->sha512, Sha512(content_));
  EXPECT_EQ(scan->sha256, Sha256(content_));
  EXPECT_EQ(scan->chunks, record->chunks);
  EXPECT_EQ(scan->chunk_count, 13u);
  EXPECT_EQ(scan->format, "raw");
  EXPECT_EQ(scan->stamp, record->stamp);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  ASSERT_FALSE(seen.empty());
  EXPECT_EQ(seen.back(), content_.size());
}

TEST_F(PublishTest, ScanOfHoles) {
  BIM_ASSERT_OK(MakeImageDir(disk(), kKey));
  for (uint32_t seed = 0; seed < 8; ++seed) {
    std::mt19937 random(seed);
    std::filesystem::remove(File());
    base::UniqueFd fd(
        ::open(File().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    std::string content(512 * (1 + random() % 20'000), '\0');
    ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(content.size())), 0);
    for (int i = 0; i < 5; ++i) {
      const std::string data = RandomBytes(1 + random() % 9000, random());
      if (data.size() > content.size()) continue;
      const size_t at = random() % (content.size() - data.size() + 1);
      content.replace(at, data.size(), data);
      BIM_ASSERT_OK(io::PwriteAll(fd.get(), data, at, "test"));
    }
    const auto scan = Scan(disk(), kKey, false, {}, nullptr);
    ASSERT_TRUE(scan.ok()) << scan.status().ToString();
    EXPECT_EQ(scan->sha512, Sha512(content)) << seed;
    for (size_t i = 0; i < scan->chunks.size(); ++i) {
      const std::string_view piece = std::string_view(content).substr(
          i * scan->chunk_size, scan->chunk_size);
      EXPECT_EQ(scan->chunks[i].zero,
                piece.find_first_not_of('\0') == std::string_view::npos);
    }
  }
}

TEST_F(PublishTest, ScanFailures) {
  EXPECT_EQ(Scan(disk(), kKey, false, {}, nullptr).status().code(),
            Code::kNotFound);
  MakeReady();
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(
      Scan(disk(), kKey, false, stop.get_token(), nullptr).status().code(),
      Code::kCancelled);
  bool once = false;
  EXPECT_EQ(Scan(disk(), kKey, false, {},
                 [&](uint64_t, uint64_t) {
                   if (!std::exchange(once, true)) test::FlipByte(File(), 5);
                 })
                .status()
                .code(),
            Code::kAborted);
  once = false;
  EXPECT_EQ(Scan(disk(), kKey, false, {},
                 [&](uint64_t, uint64_t) {
                   if (!std::exchange(once, true)) {
                     std::filesystem::resize_file(File(), 512);
                   }
                 })
                .status()
                .code(),
            Code::kAborted);
  WriteAll(File(), "short");
  EXPECT_EQ(Scan(disk(), kKey, false, {}, nullptr).status().code(),
            Code::kFailedPrecondition);
  WriteAll(File(), "");
  EXPECT_EQ(Scan(disk(), kKey, false, {}, nullptr).status().code(),
            Code::kFailedPrecondition);
}

TEST_F(PublishTest, WriteRecordMakesAScannedFileReady) {
  BIM_ASSERT_OK(MakeImageDir(disk(), kKey));
  WriteAll(File(), content_);
  auto scan = Scan(disk(), kKey, false, {}, nullptr);
  ASSERT_TRUE(scan.ok());
  BIM_ASSERT_OK(WriteRecord(disk(), *scan, "expected"));
  EXPECT_EQ(Look().kind, Kind::kReady);
  EXPECT_FALSE(Look().by_config);
  EXPECT_EQ(ReadConfig(disk().root(), kKey)->expected_checksum, "expected");
  EXPECT_EQ(ReadConfig(disk().root(), kKey)->real_size,
            test::AllocatedBytes(File()));
}

// --- Remove

class RemoveTest : public PublishTest,
                   public ::testing::WithParamInterface<bool> {
 protected:
  RemoveTest() : on_disk_(true) {}
  void SetUp() override {
    if (GetParam()) {
      scratch_.disk = on_disk_.disk;
      where_ = &on_disk_;
    }
    MakeReady();
  }
  std::string Where() { return where_->Path(DataFile(kKey)); }

  // A child that has the file open until the pipe closes.
  pid_t Hold(int flags, base::UniqueFd& end) {
    int ready[2], hold[2];
    EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(hold, O_CLOEXEC), 0);
    const std::string path = Where();
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(hold[1]);
      const int fd = ::open(path.c_str(), flags);
      char c = fd >= 0 ? 'y' : 'n';
      [[maybe_unused]] auto n = ::write(ready[1], &c, 1);
      n = ::read(hold[0], &c, 1);
      _exit(0);
    }
    ::close(hold[0]);
    ::close(ready[1]);
    char c = 0;
    EXPECT_EQ(::read(ready[0], &c, 1), 1);
    EXPECT_EQ(c, 'y');
    ::close(ready[0]);
    end = base::UniqueFd(hold[1]);
    return child;
  }

  ScratchDisk on_disk_;
  ScratchDisk* where_ = &scratch_;
};

TEST_P(RemoveTest, InUseByAnotherProcess) {
  for (int flags : {O_RDONLY, O_RDWR}) {
    base::UniqueFd end;
    const pid_t child = Hold(flags, end);
    const base::Status status = RemoveImage(disk(), kKey, false);
    EXPECT_EQ(status.code(), Code::kFailedPrecondition) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr(std::to_string(child)));
    EXPECT_EQ(CheckUnused(disk(), kKey).code(), Code::kFailedPrecondition);
    EXPECT_EQ(Look().kind, Kind::kReady);
    end.Reset();
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    BIM_EXPECT_OK(CheckUnused(disk(), kKey));
  }
  BIM_EXPECT_OK(RemoveImage(disk(), kKey, false));
  EXPECT_FALSE(Exists(where_->Path(ImageDir(kKey))));
  EXPECT_EQ(Look().kind, Kind::kNothing);
  BIM_EXPECT_OK(RemoveImage(disk(), kKey, false));
}

TEST_P(RemoveTest, InUseByThisProcess) {
  base::UniqueFd fd(::open(Where().c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(CheckUnused(disk(), kKey).code(), Code::kFailedPrecondition);
  fd.Reset();
  BIM_EXPECT_OK(CheckUnused(disk(), kKey));
}

TEST_P(RemoveTest, Forced) {
  base::UniqueFd end;
  const pid_t child = Hold(O_RDONLY, end);
  BIM_EXPECT_OK(RemoveImage(disk(), kKey, true));
  EXPECT_FALSE(Exists(where_->Path(ImageDir(kKey))));
  end.Reset();
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
}

INSTANTIATE_TEST_SUITE_P(FileSystems, RemoveTest, ::testing::Bool());

TEST_F(PublishTest, RemoveLeavesWhatIsNotOurs) {
  MakeReady();
  WriteAll(Path(ImageDir(kKey) + "/notes.txt"), "mine");
  WriteAll(Path(TempFile(kKey)), "x");
  BIM_EXPECT_OK(RemoveImage(disk(), kKey, false));
  EXPECT_EQ(ReadAll(Path(ImageDir(kKey) + "/notes.txt")), "mine");
  EXPECT_FALSE(Exists(File()));
  EXPECT_FALSE(Exists(Path(TempFile(kKey))));
  EXPECT_FALSE(Exists(Path(RecordFile(kKey))));
  EXPECT_FALSE(Exists(Path(ConfigFile(kKey))));
}

TEST_F(PublishTest, RemoveDoesNotFollowLinks) {
  std::filesystem::create_directory(Path("victim"));
  WriteAll(Path("victim/backing"), "keep");
  std::filesystem::create_symlink(Path("victim"), Path(ImageDir(kKey)));
  (void)RemoveImage(disk(), kKey, true);
  EXPECT_EQ(ReadAll(Path("victim/backing")), "keep");
  EXPECT_FALSE(MakeImageDir(disk(), kKey).ok());
}

TEST_F(PublishTest, RemovePartialTwice) {
  BIM_ASSERT_OK(MakeImageDir(disk(), kKey));
  BIM_EXPECT_OK(RemovePartial(disk(), kKey));
  WriteAll(Path(TempFile(kKey)), "x");
  WriteAll(Path(RecordFile(kKey)), "damaged");
  BIM_EXPECT_OK(RemovePartial(disk(), kKey));
  EXPECT_FALSE(Exists(Path(TempFile(kKey))));
  EXPECT_FALSE(Exists(Path(RecordFile(kKey))));
}

// --- Reflink

TEST_F(PublishTest, ReflinkWhereTheFileSystemCannot) {
  MakeReady();
  ScratchDisk other(true);
  auto record = ReadRecord(disk().root(), kKey, true);
  ASSERT_TRUE(record.ok());
  base::UniqueFd source(::open(File().c_str(), O_RDONLY | O_CLOEXEC));
  for (ScratchDisk* target : {&other, &scratch_}) {
    const ImageKey key{"copy", "u-2"};
    const auto got =
        Reflink(*target->disk, key, source.get(), *record, 0644, "");
    if (got.ok()) GTEST_SKIP() << "this file system can";
    EXPECT_EQ(got.status().code(), Code::kUnimplemented)
        << got.status().ToString();
    EXPECT_FALSE(Exists(target->Path(TempFile(key))));
    EXPECT_FALSE(Exists(target->Path(RecordFile(key))));
    EXPECT_FALSE(Exists(target->Path(DataFile(key))));
  }
}

}  // namespace
}  // namespace bim::store
