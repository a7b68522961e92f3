#include "pkg/store/migrate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "pkg/meta/version.h"
#include "pkg/store/handover.h"
#include "tests/unit/store/scratch.h"

namespace bim::store {
namespace {

using base::Code;
using test::Exists;
using test::ReadAll;
using test::WriteAll;
using ::testing::HasSubstr;

class MigrateTest : public ::testing::Test {
 protected:
  const io::Dir& Root() { return scratch_.disk->root(); }
  std::string Path(const std::string& relative) {
    return scratch_.Path(relative);
  }
  void Write(const std::string& relative, const std::string& content) {
    std::filesystem::create_directories(
        std::filesystem::path(Path(relative)).parent_path());
    WriteAll(Path(relative), content);
  }
  // As an older program would have left it.
  void MakeOlder() { Write(kFormatFile, "{\"version\":0,\"minVersion\":0}\n"); }

  test::ScratchDisk scratch_;
};

TEST_F(MigrateTest, KeepsWhatOthersWriteInPlaceAndWhatWeReplace) {
  Write("backing-images/a-u/backing.cfg", "theirs");
  Write("backing-images/a-u/backing.bim", "ours");
  Write("backing-images/a-u/backing", "data");
  Write(".bim/desired/a-u.json", "wanted");
  BIM_ASSERT_OK(KeepMetadata(Root(), 1));
  // Written in place, as another manager does it.
  WriteAll(Path("backing-images/a-u/backing.cfg"), "changed");
  BIM_ASSERT_OK(Root().ReplaceFile("backing-images/a-u/backing.bim", "newer"));
  BIM_ASSERT_OK(Root().ReplaceFile(".bim/desired/a-u.json", "newer"));
  const std::string kept = Path(BackupDir(1));
  EXPECT_EQ(ReadAll(kept + "/backing-images/a-u/backing.cfg"), "theirs");
  EXPECT_EQ(ReadAll(kept + "/backing-images/a-u/backing.bim"), "ours");
  EXPECT_EQ(ReadAll(kept + "/desired/a-u.json"), "wanted");
  EXPECT_EQ(ReadAll(kept + "/format"), ReadAll(Path(kFormatFile)));
  EXPECT_EQ(ReadAll(kept + "/owner"), ReadAll(Path(kOwnerFile)));
  EXPECT_FALSE(Exists(kept + "/backing-images/a-u/backing")) << "no image";
}

TEST_F(MigrateTest, KeepsOnce) {
  Write("backing-images/a-u/backing.cfg", "first");
  BIM_ASSERT_OK(KeepMetadata(Root(), 0));
  Write("backing-images/a-u/backing.cfg", "second");
  BIM_ASSERT_OK(KeepMetadata(Root(), 0));
  EXPECT_EQ(ReadAll(Path(BackupDir(0) + "/backing-images/a-u/backing.cfg")),
            "first");
}

TEST_F(MigrateTest, CompletesWhatACrashLeft) {
  Write(BackupDir(0) + ".part/backing-images/a-u/backing.cfg", "half");
  Write("backing-images/a-u/backing.cfg", "whole");
  BIM_ASSERT_OK(KeepMetadata(Root(), 0));
  EXPECT_EQ(ReadAll(Path(BackupDir(0) + "/backing-images/a-u/backing.cfg")),
            "whole");
  EXPECT_FALSE(Exists(Path(BackupDir(0) + ".part")));
}

TEST_F(MigrateTest, WhatIsNoImageIsNoHindrance) {
  std::filesystem::create_directories(Path("backing-images"));
  WriteAll(Path("backing-images/file"), "");
  std::filesystem::create_symlink("/etc", Path("backing-images/link-u"));
  Write("backing-images/large-u/backing.cfg", std::string(1 << 20, ' '));
  BIM_ASSERT_OK(KeepMetadata(Root(), 0));
  EXPECT_FALSE(Exists(Path(BackupDir(0) + "/backing-images/link-u")));
}

TEST_F(MigrateTest, OneOfThisVersionIsLeftAlone) {
  const auto done = Migrate(Root());
  ASSERT_TRUE(done.ok()) << done.status().ToString();
  EXPECT_EQ(done->from, meta::kDiskFormatVersion);
  EXPECT_EQ(done->to, meta::kDiskFormatVersion);
  EXPECT_EQ(done->backup, "");
  EXPECT_FALSE(Exists(Path(kBackupDir)));
}

TEST_F(MigrateTest, AnOlderOneIsRaised) {
  MakeOlder();
  Write("backing-images/a-u/backing.cfg", "{}");
  const auto plan = PlanMigration(Root());
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  EXPECT_EQ(plan->to, meta::kDiskFormatVersion);
  EXPECT_FALSE(Exists(Path(kBackupDir))) << "only planned";
  const auto done = Migrate(Root());
  ASSERT_TRUE(done.ok()) << done.status().ToString();
  EXPECT_EQ(done->from, 0);
  EXPECT_EQ(done->backup, BackupDir(0));
  EXPECT_EQ(ReadFormat(Root())->version, meta::kDiskFormatVersion);
  EXPECT_EQ(ReadFormat(Root())->min_version, meta::kDiskFormatMinVersion);
  EXPECT_THAT(ReadAll(Path(BackupDir(0) + "/format")),
              HasSubstr("\"version\":0"));
}

TEST_F(MigrateTest, ANewerOneIsRefusedByName) {
  const std::string newer = std::to_string(meta::kDiskFormatVersion + 1);
  Write(kFormatFile,
        "{\"version\":" + newer + ",\"minVersion\":" + newer + "}\n");
  const auto done = Migrate(Root());
  EXPECT_EQ(done.status().code(), Code::kFailedPrecondition);
  EXPECT_THAT(done.status().message(), HasSubstr(newer));
}

TEST_F(MigrateTest, OneThatIsNewerButReadableStays) {
  Write(kFormatFile,
        "{\"version\":" + std::to_string(meta::kDiskFormatVersion + 1) +
            ",\"minVersion\":1}\n");
  const std::string before = ReadAll(Path(kFormatFile));
  const auto done = Migrate(Root());
  ASSERT_TRUE(done.ok()) << done.status().ToString();
  EXPECT_EQ(done->from, done->to);
  EXPECT_EQ(ReadAll(Path(kFormatFile)), before);
}

TEST_F(MigrateTest, OneThatNobodyOwnedOrIsDamaged) {
  std::filesystem::remove(Path(kFormatFile));
  EXPECT_EQ(Migrate(Root()).status().code(), Code::kNotFound);
  BIM_ASSERT_OK(KeepMetadata(Root(), 0));
  EXPECT_FALSE(Exists(Path(kBackupDir))) << "there is nothing to keep";
  Write(kFormatFile, "{");
  EXPECT_EQ(Migrate(Root()).status().code(), Code::kDataLoss);
}

}  // namespace
}  // namespace bim::store
