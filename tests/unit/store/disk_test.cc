#include "pkg/store/disk.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>

#include "pkg/meta/version.h"
#include "tests/unit/store/scratch.h"

namespace bim::store {
namespace {

using base::Code;
using test::Exists;
using test::InitDisk;
using test::ReadAll;
using test::TempDir;
using test::WriteAll;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

const Disk::Owner kOwner{"manager-1", "0.1.0", "unix:/run/x"};

std::variant<std::shared_ptr<Disk>, DiskFault> Claim(
    const std::string& path, const std::string& uuid = "") {
  return Disk::Claim(path, uuid, kOwner);
}
DiskFault FaultOf(const std::variant<std::shared_ptr<Disk>, DiskFault>& got) {
  if (const auto* fault = std::get_if<DiskFault>(&got)) return *fault;
  return {DiskState::kReady, "claimed"};
}

std::vector<std::string> Texts(const Disk& disk) {
  const auto files = LoadDesired(disk.root());
  EXPECT_TRUE(files.ok()) << files.status().ToString();
  std::vector<std::string> texts;
  if (files.ok()) {
    for (const DesiredFileContent& file : *files) texts.push_back(file.json);
  }
  return texts;
}

class DiskTest : public ::testing::Test {
 protected:
  void SetUp() override { InitDisk(dir_.path(), "disk-1"); }
  std::shared_ptr<Disk> Take() { return test::ClaimDisk(dir_.path()); }
  OwnerRecord Owner() {
    const auto owner = DecodeOwner(ReadAll(dir_ / kOwnerFile));
    EXPECT_TRUE(owner.ok()) << owner.status().ToString();
    return owner.ok() ? *owner : OwnerRecord();
  }
  TempDir dir_;
};

TEST_F(DiskTest, ClaimMakesTheLayout) {
  const auto disk = Take();
  ASSERT_TRUE(disk);
  EXPECT_EQ(disk->uuid(), "disk-1");
  EXPECT_EQ(disk->path(), dir_.path());
  EXPECT_EQ(disk->epoch(), 1u);
  EXPECT_TRUE(std::filesystem::is_directory(dir_ / kBimDir));
  EXPECT_TRUE(std::filesystem::is_directory(dir_ / kDesiredDir));
  EXPECT_TRUE(std::filesystem::is_directory(dir_ / kImagesDir));
  EXPECT_TRUE(Exists(dir_ / kFormatFile));
  const OwnerRecord owner = Owner();
  EXPECT_EQ(owner.manager_id, "manager-1");
  EXPECT_EQ(owner.epoch, 1u);
  EXPECT_EQ(owner.pid, ::getpid());
  EXPECT_THAT(owner.pid_namespace, HasSubstr("pid:["));
  EXPECT_GT(owner.start_time, 0u);
  EXPECT_EQ(owner.boot_id.size(), 36u);
  EXPECT_EQ(owner.api_version, meta::kApiVersion);
  EXPECT_EQ(owner.api_min_version, meta::kApiMinVersion);
  EXPECT_EQ(owner.phase, "steady");
  EXPECT_EQ(disk->Check(true).state, DiskState::kReady)
      << disk->Check(true).message;
  BIM_EXPECT_OK(disk->CheckOwner());
  const auto space = disk->GetSpace();
  ASSERT_TRUE(space.ok());
  EXPECT_GT(space->total_bytes, 0u);
  EXPECT_LE(space->available_bytes, space->total_bytes);
}

TEST_F(DiskTest, SecondClaimInTheSameProcessIsOwned) {
  const auto first = Take();
  const DiskFault fault = FaultOf(Claim(dir_.path()));
  EXPECT_EQ(fault.state, DiskState::kOwned);
  EXPECT_THAT(fault.message, HasSubstr("manager-1"));
  EXPECT_THAT(fault.message, HasSubstr(std::to_string(::getpid())));
  EXPECT_EQ(Owner().epoch, 1u) << "a refused claim changes nothing";
  BIM_EXPECT_OK(first->CheckOwner());
}

TEST_F(DiskTest, AChildProcessCannotTakeIt) {
  const auto first = Take();
  const pid_t child = ::fork();
  if (child == 0) {
    _exit(FaultOf(Claim(dir_.path())).state == DiskState::kOwned ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(DiskTest, EpochGrowsWithEveryClaim) {
  for (uint64_t epoch = 1; epoch <= 4; ++epoch) {
    const auto disk = Take();
    ASSERT_TRUE(disk);
    EXPECT_EQ(disk->epoch(), epoch);
    EXPECT_EQ(Owner().epoch, epoch);
  }
}

TEST_F(DiskTest, EpochGrowsThoughOnlyTheFormatFileIsMissing) {
  Take().reset();
  std::filesystem::remove(dir_ / kFormatFile);
  const auto disk = Take();
  ASSERT_TRUE(disk);
  EXPECT_EQ(disk->epoch(), 2u);
}

TEST_F(DiskTest, DamagedOwnerRecordIsNeverGuessed) {
  Take().reset();
  for (const char* text : {"", "x", "{}", "{\"epoch\":-1}", "{\"epoch\":\"3\"}",
                           "[]", "{\"epoch\":1.5}"}) {
    WriteAll(dir_ / kOwnerFile, text);
    const DiskFault fault = FaultOf(Claim(dir_.path()));
    EXPECT_EQ(fault.state, DiskState::kFailed) << text;
    EXPECT_THAT(fault.message, HasSubstr("epoch"));
    EXPECT_EQ(ReadAll(dir_ / kOwnerFile), text) << "left as it was";
  }
  std::filesystem::remove(dir_ / kOwnerFile);
  EXPECT_EQ(FaultOf(Claim(dir_.path())).state, DiskState::kFailed)
      << "with a format file the record must be there";
}

TEST_F(DiskTest, NewerFormatIsRefusedByName) {
  Take().reset();
  const int ours = meta::kDiskFormatVersion;
  const std::string newer = "{\"version\":" + std::to_string(ours + 6) +
                            ",\"minVersion\":" + std::to_string(ours + 1) + "}";
  WriteAll(dir_ / kFormatFile, newer);
  const DiskFault fault = FaultOf(Claim(dir_.path()));
  EXPECT_EQ(fault.state, DiskState::kFailed);
  EXPECT_THAT(fault.message, HasSubstr(std::to_string(ours + 6)));
  EXPECT_THAT(fault.message, HasSubstr(std::to_string(ours + 1)));
  EXPECT_EQ(ReadAll(dir_ / kFormatFile), newer);
  EXPECT_EQ(Owner().epoch, 1u);
}

TEST_F(DiskTest, NewerFormatThatOldProgramsMayReadIsTaken) {
  Take().reset();
  const std::string newer = "{\"version\":99,\"minVersion\":" +
                            std::to_string(meta::kDiskFormatVersion) +
                            ",\"more\":[]}";
  WriteAll(dir_ / kFormatFile, newer);
  EXPECT_TRUE(Take());
  EXPECT_EQ(ReadAll(dir_ / kFormatFile), newer) << "not ours to lower";
}

TEST_F(DiskTest, OlderFormatThanWeReadIsRefused) {
  Take().reset();
  WriteAll(dir_ / kFormatFile,
           "{\"version\":" + std::to_string(meta::kDiskFormatMinVersion - 1) +
               ",\"minVersion\":0}");
  EXPECT_EQ(FaultOf(Claim(dir_.path())).state, DiskState::kFailed);
}

TEST_F(DiskTest, DamagedFormatFile) {
  Take().reset();
  for (const char* text :
       {"", "{", "{\"version\":1}", "{\"version\":\"1\",\"minVersion\":1}"}) {
    WriteAll(dir_ / kFormatFile, text);
    EXPECT_EQ(FaultOf(Claim(dir_.path())).state, DiskState::kFailed) << text;
  }
}

TEST_F(DiskTest, FormatNumbersBeyondAnIntAreNotTruncated) {
  Take().reset();
  WriteAll(dir_ / kFormatFile,
           "{\"version\":4294967297,\"minVersion\":4294967297}");
  EXPECT_EQ(FaultOf(Claim(dir_.path())).state, DiskState::kFailed);
}

TEST_F(DiskTest, NoDirectoryAndNoIdentityAreMissing) {
  EXPECT_EQ(FaultOf(Claim(dir_ / "nowhere")).state, DiskState::kMissing);
  std::filesystem::create_directory(dir_ / "empty");
  const DiskFault fault = FaultOf(Claim(dir_ / "empty"));
  EXPECT_EQ(fault.state, DiskState::kMissing);
  EXPECT_THAT(fault.message, HasSubstr("mounted"));
  EXPECT_TRUE(std::filesystem::is_empty(dir_ / "empty"))
      << "nothing is made in a directory that is no disk";
}

TEST_F(DiskTest, AnotherIdentityIsSwapped) {
  const DiskFault fault = FaultOf(Claim(dir_.path(), "disk-2"));
  EXPECT_EQ(fault.state, DiskState::kSwapped);
  EXPECT_THAT(fault.message, HasSubstr("disk-1"));
  EXPECT_THAT(fault.message, HasSubstr("disk-2"));
  EXPECT_FALSE(Exists(dir_ / kBimDir));
}

TEST_F(DiskTest, SymlinkedFolderIsRefused) {
  std::filesystem::create_directory(dir_ / "other");
  std::filesystem::create_symlink(dir_ / "other", dir_ / kBimDir);
  EXPECT_EQ(FaultOf(Claim(dir_.path())).state, DiskState::kFailed);
  EXPECT_TRUE(std::filesystem::is_empty(dir_ / "other"));
  std::filesystem::remove(dir_ / kBimDir);
  std::filesystem::create_symlink("nowhere", dir_ / kBimDir);
  EXPECT_EQ(FaultOf(Claim(dir_.path())).state, DiskState::kFailed);
  EXPECT_FALSE(Exists(dir_ / "nowhere"));
}

TEST_F(DiskTest, SymlinkedFilesAreRefused) {
  Take().reset();
  for (const char* file :
       {kLockFile, kOwnerFile, kFormatFile, kDesiredDir, kImagesDir}) {
    const std::string path = dir_ / file;
    std::filesystem::rename(path, dir_ / "moved");
    std::filesystem::create_symlink(dir_ / "moved", path);
    EXPECT_EQ(FaultOf(Claim(dir_.path())).state, DiskState::kFailed) << file;
    std::filesystem::remove(path);
    std::filesystem::rename(dir_ / "moved", path);
    // The owner record must be read to be counted on.
    ASSERT_TRUE(Take()) << file;
  }
}

TEST_F(DiskTest, DamagedIdentities) {
  for (const char* text : {"", "x", "{}", "{\"diskUUID\":1}",
                           "{\"diskUUID\":\"\"}", "{\"diskUUID\":\"../x\"}"}) {
    WriteAll(dir_ / kIdentityFile, text);
    EXPECT_EQ(FaultOf(Claim(dir_.path())).state, DiskState::kFailed) << text;
    auto root = io::Dir::Open(dir_.path());
    EXPECT_EQ(ReadIdentity(*root).status().code(), Code::kDataLoss) << text;
  }
  std::filesystem::remove(dir_ / kIdentityFile);
  ASSERT_EQ(::mkfifo((dir_ / kIdentityFile).c_str(), 0600), 0);
  EXPECT_EQ(FaultOf(Claim(dir_.path())).state, DiskState::kFailed);
}

TEST_F(DiskTest, InitIdentity) {
  auto root = io::Dir::Open(dir_.path());
  ASSERT_TRUE(root.ok());
  EXPECT_EQ(InitIdentity(*root, "disk-9").code(), Code::kAlreadyExists);
  EXPECT_EQ(*ReadIdentity(*root), "disk-1");
  std::filesystem::remove(dir_ / kIdentityFile);
  EXPECT_EQ(InitIdentity(*root, "a/b").code(), Code::kInvalidArgument);
  EXPECT_EQ(ReadIdentity(*root).status().code(), Code::kNotFound);
  BIM_EXPECT_OK(InitIdentity(*root, "disk-9"));
  EXPECT_EQ(*ReadIdentity(*root), "disk-9");
}

TEST_F(DiskTest, CheckSeesWhatBecameOfTheDisk) {
  auto disk = Take();
  WriteAll(dir_ / kIdentityFile, "{\"diskUUID\":\"disk-7\"}");
  EXPECT_EQ(disk->Check(true).state, DiskState::kSwapped);
  std::filesystem::remove(dir_ / kIdentityFile);
  EXPECT_EQ(disk->Check(true).state, DiskState::kMissing);
  WriteAll(dir_ / kIdentityFile, "{\"diskUUID\":\"disk-1\"}");
  EXPECT_EQ(disk->Check(true).state, DiskState::kReady);
  // Another owner, by whatever way: we are late.
  OwnerRecord owner = Owner();
  owner.epoch = 8;
  WriteAll(dir_ / kOwnerFile, EncodeOwner(owner));
  EXPECT_EQ(disk->CheckOwner().code(), Code::kAborted);
  EXPECT_EQ(disk->Check(true).state, DiskState::kFailed);
  WriteAll(dir_ / kOwnerFile, "x");
  EXPECT_EQ(disk->CheckOwner().code(), Code::kAborted);
}

TEST(DiskPathTest, AnotherDirectoryAtThePathIsMissing) {
  TempDir dir;
  InitDisk(dir / "a", "disk-1");
  auto disk = test::ClaimDisk(dir / "a");
  std::filesystem::rename(dir / "a", dir / "b");
  EXPECT_EQ(disk->Check(true).state, DiskState::kMissing);
  InitDisk(dir / "a", "disk-1");
  EXPECT_EQ(disk->Check(true).state, DiskState::kMissing);
}

TEST_F(DiskTest, Desired) {
  const auto disk = Take();
  const ImageKey a{"a", "1"}, b{"b", "2"};
  EXPECT_TRUE(Texts(*disk).empty());
  BIM_EXPECT_OK(disk->PutDesired(a, "{A}"));
  BIM_EXPECT_OK(disk->PutDesired(b, "{B}"));
  BIM_EXPECT_OK(disk->PutDesired(a, "{A2}"));
  EXPECT_THAT(Texts(*disk), UnorderedElementsAre("{A2}", "{B}"));
  struct stat st = {};
  ASSERT_EQ(::stat((dir_ / DesiredFile(a)).c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u) << "URLs may hold secrets";
  BIM_EXPECT_OK(disk->RemoveDesired(a));
  BIM_EXPECT_OK(disk->RemoveDesired(a));
  EXPECT_THAT(Texts(*disk), UnorderedElementsAre("{B}"));
}

TEST_F(DiskTest, DesiredLeftOverByACrashIsNoDocument) {
  const auto disk = Take();
  WriteAll(dir_ / (DesiredFile({"a", "1"}) + ".new"), "half");
  EXPECT_TRUE(Texts(*disk).empty());
}

TEST_F(DiskTest, ADesiredFileThatCannotBeReadFailsTheWhole) {
  const auto disk = Take();
  BIM_EXPECT_OK(disk->PutDesired({"a", "1"}, "{A}"));
  std::filesystem::create_symlink(dir_ / kIdentityFile,
                                  dir_ / DesiredFile({"b", "2"}));
  EXPECT_FALSE(LoadDesired(disk->root()).ok());
  std::filesystem::remove(dir_ / DesiredFile({"b", "2"}));
  WriteAll(dir_ / DesiredFile({"b", "2"}), std::string(300 * 1024, 'x'));
  EXPECT_FALSE(LoadDesired(disk->root()).ok());
  std::filesystem::remove(dir_ / DesiredFile({"b", "2"}));
  ASSERT_EQ(::mkfifo((dir_ / DesiredFile({"b", "2"})).c_str(), 0600), 0);
  EXPECT_FALSE(LoadDesired(disk->root()).ok());
}

TEST(OwnerRecordTest, RoundTrips) {
  OwnerRecord owner{
      "m", uint64_t{1} << 60, 4711,     "pid:[1]", 99, "boot", "1.2", 4,
      3,   "unix:/x",         "steady", -7};
  const auto back = DecodeOwner(EncodeOwner(owner));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->manager_id, owner.manager_id);
  EXPECT_EQ(back->epoch, owner.epoch);
  EXPECT_EQ(back->pid, owner.pid);
  EXPECT_EQ(back->pid_namespace, owner.pid_namespace);
  EXPECT_EQ(back->start_time, owner.start_time);
  EXPECT_EQ(back->boot_id, owner.boot_id);
  EXPECT_EQ(back->version, owner.version);
  EXPECT_EQ(back->api_version, owner.api_version);
  EXPECT_EQ(back->api_min_version, owner.api_min_version);
  EXPECT_EQ(back->endpoint, owner.endpoint);
  EXPECT_EQ(back->phase, owner.phase);
  EXPECT_EQ(back->since_ns, owner.since_ns);
}

TEST(OwnerRecordTest, CutOffAtEveryByteIsDataLoss) {
  const std::string text = EncodeOwner({"m", 1});
  // The last byte is the line's end.
  for (size_t length = 0; length + 1 < text.size(); ++length) {
    EXPECT_EQ(DecodeOwner(text.substr(0, length)).status().code(),
              Code::kDataLoss)
        << length;
  }
}

TEST(OwnerRecordTest, UnknownAndOddFieldsAreNoError) {
  const auto owner = DecodeOwner(
      R"({"epoch":3,"new":{},"managerId":5,"pid":"x","startTime":1e99})");
  ASSERT_TRUE(owner.ok());
  EXPECT_EQ(owner->epoch, 3u);
  EXPECT_EQ(owner->manager_id, "");
}

TEST(OwnerRecordTest, AnyBytesDoNotThrow) {
  OwnerRecord owner;
  owner.manager_id = "caf\xe9";
  EXPECT_NO_THROW({ (void)EncodeOwner(owner); });
}

TEST(DiskStateTest, Names) {
  EXPECT_EQ(DiskStateName(DiskState::kReady), "ready");
  EXPECT_EQ(DiskStateName(DiskState::kReadOnly), "read-only");
  EXPECT_EQ(DiskStateName(DiskState::kMissing), "missing");
  EXPECT_EQ(DiskStateName(DiskState::kSwapped), "swapped");
  EXPECT_EQ(DiskStateName(DiskState::kOwned), "owned");
  EXPECT_EQ(DiskStateName(DiskState::kFailed), "failed");
}

}  // namespace
}  // namespace bim::store
