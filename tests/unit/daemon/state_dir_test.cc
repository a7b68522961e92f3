#include "daemon/state_dir.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/unit/bytes.h"

namespace bim::daemon {
namespace {

using testing::HasSubstr;

class StateDirTest : public testing::Test {
 protected:
  StateDirTest() {
    std::string name = testing::TempDir() + "bim-state-XXXXXX";
    root_ = mkdtemp(name.data());
  }
  ~StateDirTest() override { std::filesystem::remove_all(root_); }

  std::string Read(const std::string& name) const {
    return test::ReadAll(path() + "/" + name);
  }
  std::string path() const { return root_ + "/a/state"; }

  std::string root_;
};

TEST_F(StateDirTest, IsMadePrivate) {
  const auto state = StateDir::Open(path());
  ASSERT_TRUE(state.ok()) << state.status().message();
  struct stat info;
  ASSERT_EQ(stat(path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700u);
}

TEST_F(StateDirTest, AnEphemeralOneIsPrivateAndRemovedAtTheEnd) {
  ASSERT_EQ(setenv("TMPDIR", root_.c_str(), /*overwrite=*/1), 0);
  std::string first_path, first_id;
  {
    const auto first = StateDir::OpenEphemeral();
    const auto second = StateDir::OpenEphemeral();
    ASSERT_TRUE(first.ok()) << first.status().message();
    ASSERT_TRUE(second.ok()) << second.status().message();
    first_path = first->path();
    EXPECT_EQ(std::filesystem::path(first_path).parent_path(), root_);
    EXPECT_NE(first_path, second->path());
    struct stat info;
    ASSERT_EQ(stat(first_path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0700u);
    first_id = *first->ManagerId();
    EXPECT_NE(first_id, *second->ManagerId());
    ASSERT_TRUE(first->WriteEndpoints({}).ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(root_));
  ASSERT_EQ(setenv("TMPDIR", (root_ + "/missing").c_str(), 1), 0);
  EXPECT_FALSE(StateDir::OpenEphemeral().ok());
  unsetenv("TMPDIR");
}

TEST_F(StateDirTest, HasOneUserAtATime) {
  {
    const auto first = StateDir::Open(path());
    ASSERT_TRUE(first.ok());
    const auto second = StateDir::Open(path());
    ASSERT_FALSE(second.ok());
    EXPECT_EQ(second.status().code(), base::Code::kFailedPrecondition);
    EXPECT_THAT(second.status().message(),
                HasSubstr("state_dir " + path() + " is in use by process " +
                          std::to_string(getpid())));
  }
  EXPECT_TRUE(StateDir::Open(path()).ok());
}

TEST_F(StateDirTest, KeepsTheManagerId) {
  std::string id;
  {
    const auto state = StateDir::Open(path());
    ASSERT_TRUE(state.ok());
    id = *state->ManagerId();
    EXPECT_EQ(id.size(), 36u);
    EXPECT_EQ(*state->ManagerId(), id);
  }
  const auto state = StateDir::Open(path());
  EXPECT_EQ(*state->ManagerId(), id);
}

TEST_F(StateDirTest, NeverReplacesABrokenManagerId) {
  const auto state = StateDir::Open(path());
  ASSERT_TRUE(state.ok());
  std::ofstream(path() + "/manager-id") << "";
  const auto id = state->ManagerId();
  ASSERT_FALSE(id.ok());
  EXPECT_EQ(id.status().code(), base::Code::kDataLoss);
  EXPECT_EQ(Read("manager-id"), "");
}

TEST_F(StateDirTest, WritesAndRemovesEndpoints) {
  const Endpoints endpoints{
      .api = {"127.0.0.1:1", "[::1]:2"}, .socket = "unix:/s", .data = ""};
  {
    const auto state = StateDir::Open(path());
    ASSERT_TRUE(state->WriteEndpoints(endpoints).ok());
    EXPECT_EQ(Read("endpoint.json"),
              "{\"api\":[\"127.0.0.1:1\",\"[::1]:2\"],\"socket\":\"unix:/s\","
              "\"data\":\"\",\"pid\":" +
                  std::to_string(getpid()) + "}\n");
    EXPECT_TRUE(state->RemoveEndpoints().ok());
    EXPECT_FALSE(std::filesystem::exists(path() + "/endpoint.json"));
    ASSERT_TRUE(state->WriteEndpoints(endpoints).ok());
  }
  // Left by a daemon that was killed.
  ASSERT_TRUE(StateDir::Open(path()).ok());
  EXPECT_FALSE(std::filesystem::exists(path() + "/endpoint.json"));
}

TEST_F(StateDirTest, ItsIdentityIsKnownToOthers) {
  EXPECT_EQ(StateDir::PeekManagerId(path()), "");
  EXPECT_FALSE(std::filesystem::exists(path())) << "nothing is made";
  const auto state = StateDir::Open(path());
  ASSERT_TRUE(state.ok()) << state.status().message();
  EXPECT_EQ(StateDir::PeekManagerId(path()), "");
  const auto id = state->ManagerId();
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(StateDir::PeekManagerId(path()), *id) << "also while it is in use";
  std::ofstream(path() + "/manager-id") << "no name\n";
  EXPECT_EQ(StateDir::PeekManagerId(path()), "");
}

}  // namespace
}  // namespace bim::daemon
