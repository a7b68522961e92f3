// What the manager tells the histories of its disks.
#include "pkg/store/history.h"

#include <fmt/format.h>

#include "pkg/manager/disk_list.h"
#include "tests/unit/manager/fixture.h"

namespace bim::manager {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::StartsWith;

class ManagerHistoryTest : public ManagerTest {
 protected:
  std::vector<store::HistoryEntry> Entries(const std::string& disk = "a") {
    const auto history = store::ReadHistory(*io::Dir::Open(dir_ / disk));
    EXPECT_TRUE(history.ok()) << history.status().ToString();
    EXPECT_EQ(history->skipped, 0u);
    return history->entries;
  }
  // "created debian: wanted, ...", each.
  std::vector<std::string> Told(const std::string& disk = "a") {
    std::vector<std::string> told;
    for (const store::HistoryEntry& entry : Entries(disk)) {
      told.push_back(fmt::format("{} {}: {}",
                                 store::HistoryEventName(entry.what),
                                 entry.name, entry.message));
    }
    return told;
  }
  size_t Failures(const std::string& disk = "a") {
    const auto entries = Entries(disk);
    return static_cast<size_t>(
        std::count_if(entries.begin(), entries.end(), [](const auto& entry) {
          return entry.what == store::HistoryEvent::kFailed;
        }));
  }
};

TEST_F(ManagerHistoryTest, TellsTheLifeOfAnImage) {
  Begin();
  MakeReady(Spec());
  ASSERT_TRUE(manager_->Ensure(Spec()).ok());  // again: nothing happens
  BIM_ASSERT_OK(manager_->Remove("debian", "", false));
  End();
  for (const char* disk : {"a", "b"}) {
    EXPECT_THAT(Told(disk),
                ElementsAre("created debian: wanted, from file://" + Source(),
                            StartsWith("ready debian: "), "removed debian: "));
    const store::HistoryEntry first = Entries(disk).front();
    EXPECT_EQ(first.uuid, "u-debian");
    EXPECT_EQ(first.manager_id, "manager-1");
    EXPECT_EQ(first.version, "0");
    EXPECT_EQ(first.epoch, 1u);
  }
}

TEST_F(ManagerHistoryTest, NoSecretsAreTold) {
  Begin();
  ImageSpec spec = Spec();
  spec.source.url = "http://user:sesame@127.0.0.1:1/a.raw?token=sesame#sesame";
  (void)manager_->Ensure(spec);
  spec.source.url = "http://127.0.0.1:1/a.raw?token=sesame";
  spec.name = "other";
  ASSERT_TRUE(manager_->Ensure(spec).ok());
  ASSERT_TRUE(Reaches(CopyState::kFailed, "other"));
  End();
  EXPECT_GE(Failures(), 1u);
  EXPECT_EQ(ReadAll(dir_ / "a/.bim/history").find("sesame"), std::string::npos);
}

TEST_F(ManagerHistoryTest, AFailureThatStaysIsToldOnce) {
  std::filesystem::remove(Source());
  options_.transfer.retry.max_tries = 3;
  Begin();
  ImageSpec spec = Spec();
  spec.source.url = "http://127.0.0.1:1/a.raw";
  ASSERT_TRUE(manager_->Ensure(spec).ok());
  // Through several windows of backing off.
  const auto attempts = [&](uint32_t count) {
    return WaitFor([&] {
      const ImageStatus status = Status();
      return !status.copies.empty() && status.copies[0].attempts >= count &&
             status.state == CopyState::kFailed;
    });
  };
  ASSERT_TRUE(attempts(3));
  End();
  EXPECT_EQ(Failures("a"), 1u) << ::testing::PrintToString(Told());
  EXPECT_EQ(Failures("b"), 1u) << "on this disk, too";
  // It is still the same one after a restart.
  Begin();
  ASSERT_TRUE(attempts(4));
  End();
  EXPECT_EQ(Failures("a"), 1u) << ::testing::PrintToString(Told());
}

TEST_F(ManagerHistoryTest, DamageIsToldAndThatItIsReadyAgain) {
  Begin();
  MakeReady(Spec());
  test::FlipByte(File("a"), 1000);
  ASSERT_TRUE(WaitFor(
      [&] { return CopyOn(Status(), "disk-a").state == CopyState::kFailed; }));
  const auto id = manager_->StartVerify("debian", "", {"disk-a"}, true);
  ASSERT_TRUE(id.ok()) << id.status().ToString();
  ASSERT_TRUE(WaitFor(
      [&] { return CopyOn(Status(), "disk-a").state == CopyState::kReady; }));
  End();
  EXPECT_THAT(Told("a"),
              ElementsAre(StartsWith("created"), StartsWith("ready"),
                          AllOf(StartsWith("failed debian"),
                                HasSubstr("the content is not what it was")),
                          "ready debian: repair"));
  EXPECT_THAT(Told("b"), SizeIs(2));
}

TEST_F(ManagerHistoryTest, AFileThatLiesThereIsToldToo) {
  Begin();
  DirectedSpec spec;
  spec.name = "debian";
  spec.uuid = "u-debian";
  spec.disk = "disk-a";
  ASSERT_TRUE(manager_->Direct(spec).ok());
  BIM_ASSERT_OK(manager_->RemoveDirected("disk-a", "debian", "u-debian"));
  // What nobody registered.
  BIM_ASSERT_OK(manager_->RemoveDirected("disk-a", "debian", "u-debian"));
  spec.source.url = "file://" + Source();
  ASSERT_TRUE(manager_->Direct(spec).ok());
  ASSERT_TRUE(Reaches(CopyState::kReady));
  BIM_ASSERT_OK(manager_->ForgetDirected("disk-a", "debian", "u-debian"));
  // Now it lies there.
  ASSERT_TRUE(manager_->Direct(spec).ok());
  End();
  EXPECT_THAT(
      Told(),
      ElementsAre(
          "created debian: directed",
          AllOf(StartsWith("failed debian"), HasSubstr("no file to reuse")),
          "removed debian: ",
          "created debian: directed, from file://" + Source(),
          "ready debian: download", "removed debian: forgotten; its files stay",
          "created debian: directed, from file://" + Source(),
          "ready debian: found: download"));
  EXPECT_THAT(Told("b"), IsEmpty());
}

TEST_F(ManagerHistoryTest, ATakenDiskIsOneEntry) {
  Begin();
  for (int i = 0; i < 5; ++i) MakeReady(Spec("image-" + std::to_string(i)));
  End();
  const size_t before = Entries().size();
  Begin();  // the same manager
  End();
  EXPECT_THAT(Entries(), SizeIs(before));
  options_.manager_id = "manager-2";
  Begin();
  ASSERT_TRUE(Reaches(CopyState::kReady, "image-4"));
  End();
  ASSERT_THAT(Entries(), SizeIs(before + 1));
  const store::HistoryEntry entry = Entries().back();
  EXPECT_EQ(entry.what, store::HistoryEvent::kTakenOver);
  EXPECT_EQ(entry.name, "");
  EXPECT_EQ(entry.manager_id, "manager-2");
  EXPECT_EQ(entry.epoch, 3u);
  EXPECT_EQ(entry.message,
            "5 of 5 images ready; before: manager manager-1, version 0, epoch "
            "2");
  options_.version = "1";
  Begin();
  End();
  EXPECT_THAT(Told().back(),
              HasSubstr("before: manager manager-2, version 0, epoch 3"));
}

TEST_F(ManagerHistoryTest, ATakenDiskThatCannotBeUsedIsToldToo) {
  Begin();
  MakeReady(Spec());
  End();
  WriteAll(dir_ / "a/.bim/desired/debian-u-debian.json", "{");
  options_.manager_id = "manager-2";
  options_.disk_check_interval = std::chrono::hours(1);
  Begin();
  End();
  EXPECT_THAT(Told().back(),
              AllOf(HasSubstr("taken-over : its images are not known: "),
                    HasSubstr("before: manager manager-1")));
}

TEST_F(ManagerHistoryTest, WhatANewDiskGetsIsToldThere) {
  const std::string b = dir_ / "b";
  options_.disk_paths = {dir_ / "a"};
  Begin();
  MakeReady(Spec());
  ASSERT_TRUE(manager_->AddDisk(b, "", false).ok());
  ASSERT_TRUE(WaitFor([&] {
    return Status().copies.size() == 2 &&
           CopyOn(Status(), "disk-b").state == CopyState::kReady;
  }));
  End();
  EXPECT_THAT(Told("b"), ElementsAre(StartsWith("created debian: wanted"),
                                     "ready debian: copy"));
  EXPECT_THAT(Told("a"), SizeIs(2));
}

TEST_F(ManagerHistoryTest, ItsLossIsNoFailure) {
  std::filesystem::create_directories(dir_ / "a/.bim/history");
  Begin();
  MakeReady(Spec());
  BIM_EXPECT_OK(manager_->Remove("debian", "", false));
  End();
  EXPECT_THAT(Entries("b"), SizeIs(3));
}

TEST(LoadDiskList, IsWhatTheManagerUses) {
  TempDir dir;
  auto list = LoadDiskList(dir / "nowhere", {"/a/", "/b/../c", "/a"});
  ASSERT_TRUE(list.ok()) << list.status().ToString();
  ASSERT_THAT(list->disks, SizeIs(2));
  EXPECT_EQ(list->disks[0].path, "/a");
  EXPECT_EQ(list->disks[0].uuid, "");
  EXPECT_EQ(list->disks[1].path, "/c");
  WriteAll(dir / kDisksFile,
           R"({"version":1,"disks":[{"path":"/a","uuid":"u"},)"
           R"({"path":"/z","uuid":""}],)"
           R"("removed":[{"disk":"u","name":"n","uuid":"i"}]})");
  list = LoadDiskList(dir.path(), {"/a", "/b"});
  ASSERT_TRUE(list.ok()) << list.status().ToString();
  ASSERT_THAT(list->disks, SizeIs(3));
  EXPECT_EQ(list->disks[0].uuid, "u");
  EXPECT_EQ(list->disks[1].path, "/z");
  EXPECT_EQ(list->disks[2].path, "/b");
  ASSERT_THAT(list->removals, SizeIs(1));
  EXPECT_EQ(list->removals[0].disk_uuid, "u");
  EXPECT_EQ(list->removals[0].key.name, "n");
  ASSERT_THAT(LoadDiskList("", {"/b"})->disks, SizeIs(1));
  EXPECT_EQ(LoadDiskList("", {"b"}).status().code(), Code::kInvalidArgument);
  WriteAll(dir / kDisksFile, "{}");
  EXPECT_EQ(LoadDiskList(dir.path(), {}).status().code(),
            Code::kFailedPrecondition);
}

}  // namespace
}  // namespace bim::manager
