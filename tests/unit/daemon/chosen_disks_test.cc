#include "daemon/chosen_disks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/store/scratch.h"

namespace bim::daemon {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

TEST(ChooseDisks, TakesThoseNamedElseThoseOfTheDaemon) {
  test::TempDir dir;
  DiskChoice choice;
  choice.paths = {"/a/./b/", "relative"};
  auto disks = ChooseDisks(choice, {{"BIM_LOG_LEVEL", "no configuration"}});
  ASSERT_TRUE(disks.ok()) << disks.status().ToString();
  EXPECT_EQ((*disks)[0].path, "/a/b");
  EXPECT_EQ((*disks)[1].path,
            std::filesystem::current_path().string() + "/relative");

  choice.paths.clear();
  choice.config_path = dir / "bim.toml";
  test::WriteAll(choice.config_path,
                 "[disks]\npaths = [\"/a\", \"/b\"]\n"
                 "[node]\nstate_dir = \"" +
                     dir.path() + "\"\n");
  test::WriteAll(dir / "disks.json",
                 R"({"disks":[{"path":"/a","uuid":"u"},{"path":"/c",)"
                 R"("uuid":""}],"removed":[]})");
  disks = ChooseDisks(choice, {});
  ASSERT_TRUE(disks.ok()) << disks.status().ToString();
  ASSERT_THAT(*disks, SizeIs(3));
  EXPECT_EQ((*disks)[0].uuid, "u");
  EXPECT_EQ((*disks)[2].path, "/b");
  // A directory that does not stay keeps no list.
  disks = ChooseDisks(choice, {{"BIM_NODE_STATE_DIR", ""}});
  ASSERT_TRUE(disks.ok()) << disks.status().ToString();
  EXPECT_THAT(*disks, SizeIs(2));

  test::WriteAll(choice.config_path,
                 "[node]\nstate_dir = \"" + dir / "none" + "\"\n");
  EXPECT_EQ(ChooseDisks(choice, {}).status().code(),
            base::Code::kFailedPrecondition);
  EXPECT_THAT(ChooseDisks(choice, {}).status().message(), HasSubstr("--disk"));
  test::WriteAll(choice.config_path, "[odd]\n");
  EXPECT_EQ(ChooseDisks(choice, {}).status().code(),
            base::Code::kInvalidArgument);
}

TEST(OpenDisk, IsTheOneThatIsExpected) {
  test::TempDir dir;
  EXPECT_EQ(Open({dir / "none", ""}).status().code(), base::Code::kNotFound);
  EXPECT_THAT(Open({dir.path(), ""}).status().message(),
              HasSubstr("is the disk mounted?"));
  test::InitDisk(dir.path(), "disk-1");
  const auto disk = Open({dir.path(), "disk-1"});
  ASSERT_TRUE(disk.ok()) << disk.status().ToString();
  EXPECT_EQ(disk->uuid, "disk-1");
  EXPECT_THAT(Open({dir.path(), "disk-2"}).status().message(),
              HasSubstr("expected disk disk-2"));
}

}  // namespace
}  // namespace bim::daemon
