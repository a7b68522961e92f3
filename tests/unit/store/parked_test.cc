#include "pkg/store/parked.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "pkg/store/ingest.h"
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
using test::Sha512;
using test::WriteAll;

constexpr uint64_t kMiB = 1024 * 1024;
const ImageKey kKey{"debian", "u-1"};
const ImageKey kSource{"debian", "u-1", Place::kDataSource};

class ParkedTest : public ::testing::Test {
 protected:
  // Leaves 2 of 4 MiB in work.
  void Interrupt(const std::string& validator = "v") {
    auto ingest = Ingest::Open(scratch_.disk, kKey, {});
    ASSERT_TRUE(ingest.ok());
    BIM_ASSERT_OK((*ingest)->Begin(content_.size(), validator));
    BIM_ASSERT_OK((*ingest)->Append(AsBytes(content_).first(2 * kMiB), {}));
  }
  bool Taken(uint64_t size) {
    const auto taken = Unpark(disk(), kKey, size);
    EXPECT_TRUE(taken.ok()) << taken.status().ToString();
    return taken.ok() && *taken;
  }
  void Remove() { BIM_ASSERT_OK(RemoveImage(disk(), kKey, true)); }
  size_t Kept() {
    size_t count = 0;
    const std::string path = scratch_.Path(kParkedDir);
    if (!Exists(path)) return 0;
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      (void)entry;
      ++count;
    }
    return count;
  }
  const Disk& disk() { return *scratch_.disk; }

  ScratchDisk scratch_;
  const std::string content_ = RandomBytes(4 * kMiB, 7);
};

TEST_F(ParkedTest, IsThereForTheNextTry) {
  Interrupt();
  BIM_ASSERT_OK(Park(disk(), kKey));
  Remove();
  EXPECT_FALSE(Exists(scratch_.Path(ImageDir(kKey))));
  ASSERT_TRUE(Taken(content_.size()));
  EXPECT_EQ(Kept(), 0u);
  auto ingest = Ingest::Open(scratch_.disk, kKey, {});
  ASSERT_TRUE(ingest.ok());
  EXPECT_EQ((*ingest)->partial_validator(), "v");
  BIM_ASSERT_OK((*ingest)->Restore({}));
  EXPECT_EQ((*ingest)->position(), 2 * kMiB);
  BIM_ASSERT_OK((*ingest)->Append(AsBytes(content_).subspan(2 * kMiB), {}));
  const auto record = (*ingest)->Commit({});
  ASSERT_TRUE(record.ok()) << record.status().ToString();
  EXPECT_EQ(record->sha512, Sha512(content_));
}

TEST_F(ParkedTest, OfAnotherSizeIsDropped) {
  Interrupt();
  BIM_ASSERT_OK(Park(disk(), kKey));
  Remove();
  EXPECT_FALSE(Taken(content_.size() + 512));
  EXPECT_EQ(Kept(), 0u);
}

TEST_F(ParkedTest, NothingLiesThere) {
  BIM_ASSERT_OK(Park(disk(), kKey));
  EXPECT_FALSE(Taken(0));
  // Bytes that no journal vouches for.
  Interrupt("");
  BIM_ASSERT_OK(Park(disk(), kKey));
  EXPECT_EQ(Kept(), 0u);
}

TEST_F(ParkedTest, ACrashBetweenTheRenamesLosesOnlyTheRetry) {
  Interrupt();
  std::filesystem::create_directories(scratch_.Path(kParkedDir));
  std::filesystem::rename(scratch_.Path(TempFile(kKey)),
                          scratch_.Path(kParkedDir) + "/debian-u-1.tmp");
  Remove();
  EXPECT_FALSE(Taken(content_.size()));
  BIM_ASSERT_OK(SweepParked(disk(), std::chrono::seconds(-1)));
  EXPECT_EQ(Kept(), 0u);
  // The other way round: the journal came back, its data did not.
  Interrupt();
  BIM_ASSERT_OK(Park(disk(), kKey));
  std::filesystem::remove(scratch_.Path(kParkedDir) + "/debian-u-1.tmp");
  EXPECT_FALSE(Taken(content_.size()));
  EXPECT_FALSE(Exists(scratch_.Path(RecordFile(kKey))));
}

TEST_F(ParkedTest, LeavesWhatIsThereAlone) {
  Interrupt();
  BIM_ASSERT_OK(Park(disk(), kKey));
  Interrupt("newer");
  EXPECT_FALSE(Taken(content_.size()));
  EXPECT_TRUE(Exists(scratch_.Path(TempFile(kKey))));
  EXPECT_EQ(Kept(), 2u);
}

TEST_F(ParkedTest, IsSweptByAge) {
  Interrupt();
  BIM_ASSERT_OK(Park(disk(), kKey));
  BIM_ASSERT_OK(SweepParked(disk(), std::chrono::hours(1)));
  EXPECT_EQ(Kept(), 2u);
  const struct timespec old[2] = {{1'000'000, 0}, {1'000'000, 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD,
                        (scratch_.Path(kParkedDir) + "/debian-u-1.tmp").c_str(),
                        old, 0),
            0);
  BIM_ASSERT_OK(SweepParked(disk(), std::chrono::hours(1)));
  EXPECT_EQ(Kept(), 0u);
}

class MoveTest : public ParkedTest {
 protected:
  void MakeSource() {
    auto opened = Disk::OpenForDataSource(scratch_.dir.path(), "", kSource);
    ASSERT_TRUE(std::holds_alternative<std::shared_ptr<Disk>>(opened))
        << std::get<DiskFault>(opened).message;
    source_disk_ = std::get<std::shared_ptr<Disk>>(opened);
    auto ingest = Ingest::Open(source_disk_, kSource, {});
    ASSERT_TRUE(ingest.ok()) << ingest.status().ToString();
    BIM_ASSERT_OK((*ingest)->Begin(content_.size(), "v"));
    BIM_ASSERT_OK((*ingest)->Append(AsBytes(content_), {}));
    const auto record = (*ingest)->Commit({});
    ASSERT_TRUE(record.ok()) << record.status().ToString();
  }
  struct stat StatOf(const std::string& relative) {
    struct stat st = {};
    EXPECT_EQ(::stat(scratch_.Path(relative).c_str(), &st), 0) << relative;
    return st;
  }
  Found Look() {
    const auto found = Inspect(disk(), kKey, 0644, "");
    EXPECT_TRUE(found.ok()) << found.status().ToString();
    return found.ok() ? *found : Found();
  }
  std::shared_ptr<Disk> source_disk_;
};

TEST_F(MoveTest, ADataSourceOwnsOnlyItsFile) {
  MakeSource();
  EXPECT_EQ(ReadAll(scratch_.Path("tmp/debian-u-1")), content_);
  EXPECT_TRUE(Exists(scratch_.Path("tmp/debian-u-1.cfg")));
  EXPECT_FALSE(source_disk_->owned());
  const auto second = Disk::OpenForDataSource(scratch_.dir.path(), "", kSource);
  ASSERT_TRUE(std::holds_alternative<DiskFault>(second));
  EXPECT_EQ(std::get<DiskFault>(second).state, DiskState::kOwned);
  const auto other = Disk::OpenForDataSource(
      scratch_.dir.path(), "", {"other", "u", Place::kDataSource});
  EXPECT_TRUE(std::holds_alternative<std::shared_ptr<Disk>>(other));
  source_disk_.reset();
  EXPECT_FALSE(Exists(scratch_.Path("tmp/debian-u-1.lock")));
  const auto again = Disk::OpenForDataSource(scratch_.dir.path(), "", kSource);
  EXPECT_TRUE(std::holds_alternative<std::shared_ptr<Disk>>(again));
}

TEST_F(MoveTest, IsReadyThereWithNothingRead) {
  MakeSource();
  const struct stat before = StatOf(DataFile(kSource));
  BIM_ASSERT_OK(MoveImage(disk(), kSource, kKey, ""));
  const struct stat after = StatOf(DataFile(kKey));
  EXPECT_EQ(after.st_ino, before.st_ino);
  EXPECT_EQ(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
  const Found found = Look();
  EXPECT_EQ(found.kind, Found::Kind::kReady);
  EXPECT_FALSE(found.by_config);
  EXPECT_EQ(found.record.sha512, Sha512(content_));
  const auto config = ReadConfig(disk().root(), kKey);
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->file_path, disk().path() + "/" + DataFile(kKey));
  for (const char* suffix : {"", ".cfg", ".bim", ".tmp"}) {
    EXPECT_FALSE(Exists(scratch_.Path("tmp/debian-u-1") + suffix)) << suffix;
  }
}

TEST_F(MoveTest, LonghornsFileKeepsItsConfig) {
  MakeSource();
  std::filesystem::remove(scratch_.Path(RecordFile(kSource)));
  BIM_ASSERT_OK(MoveImage(disk(), kSource, kKey, ""));
  const Found found = Look();
  EXPECT_EQ(found.kind, Found::Kind::kReady);
  EXPECT_TRUE(found.by_config);
  EXPECT_FALSE(Exists(scratch_.Path(ConfigFile(kSource))));
}

TEST_F(MoveTest, ATouchedOneIsNotBelieved) {
  MakeSource();
  test::FlipByte(scratch_.Path(DataFile(kSource)), 5000);
  BIM_ASSERT_OK(MoveImage(disk(), kSource, kKey, ""));
  EXPECT_EQ(Look().kind, Found::Kind::kUnproven);
}

TEST_F(MoveTest, ReplacesNoFile) {
  MakeSource();
  std::filesystem::create_directories(scratch_.Path(ImageDir(kKey)));
  WriteAll(scratch_.Path(DataFile(kKey)), "precious");
  EXPECT_EQ(MoveImage(disk(), kSource, kKey, "").code(), Code::kAlreadyExists);
  EXPECT_EQ(ReadAll(scratch_.Path(DataFile(kKey))), "precious");
  EXPECT_TRUE(Exists(scratch_.Path(DataFile(kSource))));
  EXPECT_EQ(
      MoveImage(disk(), {"none", "u", Place::kDataSource}, kKey, "").code(),
      Code::kNotFound);
}

TEST_F(MoveTest, ACrashBeforeOrBehindTheRename) {
  MakeSource();
  auto record = ReadRecord(disk().root(), kSource, true);
  ASSERT_TRUE(record.ok());
  record->key = kKey;
  record->stamp.ctime_ns = 0;
  std::filesystem::create_directories(scratch_.Path(ImageDir(kKey)));
  WriteAll(scratch_.Path(RecordFile(kKey)), EncodeRecord(*record));
  EXPECT_EQ(Look().kind, Found::Kind::kNothing);  // and it can be moved again
  std::filesystem::rename(scratch_.Path(DataFile(kSource)),
                          scratch_.Path(DataFile(kKey)));
  EXPECT_EQ(Look().kind, Found::Kind::kReady);
  EXPECT_TRUE(Exists(scratch_.Path(ConfigFile(kKey))));
}

TEST_F(MoveTest, AdoptsWhatAnotherProgramWrote) {
  MakeSource();
  std::filesystem::rename(scratch_.Path(DataFile(kSource)),
                          scratch_.Path(TempFile(kSource)));
  std::filesystem::remove(scratch_.Path(RecordFile(kSource)));
  uint64_t done = 0;
  const auto adopted =
      AdoptTemp(*source_disk_, kSource,
                {.expect_sha512 = Sha512(content_), .origin = "converted"}, {},
                [&](uint64_t at) { done = at; });
  ASSERT_TRUE(adopted.ok()) << adopted.status().ToString();
  EXPECT_EQ(done, content_.size());
  EXPECT_EQ(adopted->sha512, Sha512(content_));
  EXPECT_EQ(ReadAll(scratch_.Path(DataFile(kSource))), content_);
  // Proven wrong: gone.
  std::filesystem::rename(scratch_.Path(DataFile(kSource)),
                          scratch_.Path(TempFile(kSource)));
  std::filesystem::remove(scratch_.Path(RecordFile(kSource)));
  EXPECT_EQ(AdoptTemp(*source_disk_, kSource, {.expect_sha512 = Sha512("x")},
                      {}, [](uint64_t) {})
                .status()
                .code(),
            Code::kFailedPrecondition);
  EXPECT_FALSE(Exists(scratch_.Path(TempFile(kSource))));
}

}  // namespace
}  // namespace bim::store
