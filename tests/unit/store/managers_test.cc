#include "pkg/store/managers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/store/scratch.h"

namespace bim::store {
namespace {

using base::Code;
using test::Exists;
using test::ReadAll;
using test::WriteAll;
using ::testing::HasSubstr;
using ::testing::SizeIs;

ManagerRecord Record(const std::string& id, int64_t since_ns = 1,
                     ManagerRole role = ManagerRole::kOwner) {
  ManagerRecord record;
  DescribeSelf(record.owner);
  record.owner.manager_id = id;
  record.owner.epoch = 3;
  record.owner.version = "0.1.0";
  record.owner.since_ns = since_ns;
  record.role = role;
  return record;
}
ManagerRecord Dead(const std::string& id, int64_t since_ns = 1) {
  ManagerRecord record = Record(id, since_ns);
  record.owner.boot_id = "another";
  return record;
}
ManagerRecord Elsewhere(const std::string& id, int64_t since_ns = 1) {
  ManagerRecord record = Record(id, since_ns);
  record.owner.pid_namespace = "pid:[1]";
  return record;
}

class ManagersTest : public ::testing::Test {
 protected:
  const io::Dir& Root() { return scratch_.disk->root(); }
  std::string File(const std::string& id) {
    return scratch_.Path(std::string(kManagersDir) + "/" + id + ".json");
  }
  std::vector<std::string> Ids() {
    const auto list = ListManagers(Root());
    EXPECT_TRUE(list.ok()) << list.status().ToString();
    std::vector<std::string> ids;
    if (list.ok()) {
      for (const FoundManager& found : *list) ids.push_back(found.manager_id);
    }
    return ids;
  }
  test::ScratchDisk scratch_;
};

TEST(ManagerRecord, IsReadAsItWasWritten) {
  for (const auto role : {ManagerRole::kOwner, ManagerRole::kCandidate}) {
    const ManagerRecord record = Record("m", 5, role);
    const auto read = DecodeManager(EncodeManager(record));
    BIM_ASSERT_OK(read.status());
    EXPECT_EQ(EncodeManager(*read), EncodeManager(record));
    EXPECT_EQ(read->role, role);
  }
  for (const char* text :
       {"", "{", "[]", "{}", "{\"epoch\":1}", "{\"epoch\":1,\"role\":\"x\"}"}) {
    EXPECT_EQ(DecodeManager(text).status().code(), Code::kDataLoss) << text;
  }
}

TEST_F(ManagersTest, ClaimWritesTheOwner) {
  const auto list = ListManagers(Root());
  BIM_ASSERT_OK(list.status());
  ASSERT_THAT(*list, SizeIs(1));
  const FoundManager& found = list->front();
  EXPECT_EQ(found.manager_id, "manager-1");
  ASSERT_TRUE(found.record) << found.error;
  EXPECT_EQ(found.record->role, ManagerRole::kOwner);
  const auto owner = ReadOwner(Root());
  BIM_ASSERT_OK(owner.status());
  EXPECT_EQ(EncodeOwner(found.record->owner), EncodeOwner(*owner));
  // Again, by the same one: the same file, of now.
  scratch_.Restart();
  ASSERT_THAT(*ListManagers(Root()), SizeIs(1));
  EXPECT_EQ(ListManagers(Root())->front().record->owner.epoch, 2u);
}

TEST_F(ManagersTest, ADataSourceIsNone) {
  test::TempDir dir;
  test::InitDisk(dir.path(), "disk-2");
  const auto source =
      Disk::OpenForDataSource(dir.path(), "", {"a", "u", Place::kDataSource});
  ASSERT_TRUE(std::holds_alternative<std::shared_ptr<Disk>>(source));
  EXPECT_FALSE(Exists(dir / kBimDir));
}

TEST_F(ManagersTest, ADiskWithoutThemIsTakenAllTheSame) {
  scratch_.disk.reset();
  std::filesystem::remove_all(scratch_.Path(kManagersDir));
  WriteAll(scratch_.Path(kManagersDir), "a file");
  scratch_.disk = test::ClaimDisk(scratch_.dir.path());
  ASSERT_TRUE(scratch_.disk);
  EXPECT_THAT(Ids(), SizeIs(0));
  // An id that cannot be a file's name.
  scratch_.disk.reset();
  std::filesystem::remove(scratch_.Path(kManagersDir));
  auto claimed =
      Disk::Claim(scratch_.dir.path(), "", {"../escaped", "1", "unix:x"});
  ASSERT_TRUE(std::holds_alternative<std::shared_ptr<Disk>>(claimed));
  scratch_.disk = std::get<std::shared_ptr<Disk>>(claimed);
  EXPECT_FALSE(Exists(scratch_.Path(".bim/escaped.json")));
  EXPECT_THAT(Ids(), SizeIs(0));
}

TEST_F(ManagersTest, OnlyNamesBecomeFiles) {
  for (const char* id : {"", "..", "../x", "a/b", ".hidden", "a b"}) {
    EXPECT_EQ(WriteManager(Root(), Record(id)).code(), Code::kInvalidArgument)
        << id;
    EXPECT_EQ(RemoveManager(Root(), id).code(), Code::kInvalidArgument) << id;
  }
  BIM_EXPECT_OK(WriteManager(Root(), Record(std::string(64, 'a'))));
  EXPECT_THAT(Ids(), SizeIs(2));
}

TEST_F(ManagersTest, DamagedOnesAreListedByName) {
  WriteAll(File("bad"), "garbage");
  WriteAll(File("large"), std::string(1 << 20, 'x'));
  WriteAll(File("other"), EncodeManager(Record("somebody")));
  WriteAll(File("..odd"), EncodeManager(Record("odd")));
  WriteAll(File("m") + ".new", "left by a crash");
  std::filesystem::create_symlink("/etc/passwd", File("link"));
  EXPECT_THAT(Ids(), ::testing::ElementsAre("bad", "large", "link", "manager-1",
                                            "other"));
  const auto list = ListManagers(Root());
  for (const FoundManager& found : *list) {
    EXPECT_EQ(found.record.has_value(), found.manager_id == "manager-1");
    EXPECT_EQ(found.error.empty(), found.manager_id == "manager-1");
  }
  EXPECT_THAT(list->back().error, HasSubstr("somebody"));
  for (const char* id : {"bad", "link", "bad"}) {
    BIM_EXPECT_OK(RemoveManager(Root(), id));
  }
  EXPECT_THAT(Ids(), ::testing::ElementsAre("large", "manager-1", "other"));
}

TEST_F(ManagersTest, TheOldestDeadOneGoesFirst) {
  const auto name = [](int number) {
    return "m" + std::to_string(100 + number);
  };
  // With that of the owner: as many as may be. The dead ones are the newest.
  const int count = static_cast<int>(kMaxManagers) - 1;
  for (int i = 0; i < count; ++i) {
    BIM_ASSERT_OK(WriteManager(Root(), i >= count - 3 ? Dead(name(i), 2000 - i)
                                       : i >= count - 5
                                           ? Elsewhere(name(i), 500 + i)
                                           : Record(name(i), 10 + i)));
  }
  EXPECT_THAT(Ids(), SizeIs(kMaxManagers));
  // Each new one takes the place of one.
  const std::vector<std::string> leaving = {
      name(count - 1), name(count - 2), name(count - 3),  // dead, the oldest
      name(count - 5), name(count - 4),                   // not seen from here
      name(0),         name(1)};
  for (size_t i = 0; i < leaving.size(); ++i) {
    ASSERT_TRUE(Exists(File(leaving[i]))) << leaving[i];
    BIM_ASSERT_OK(WriteManager(Root(), Record("new-" + std::to_string(i), 1)));
    EXPECT_FALSE(Exists(File(leaving[i]))) << leaving[i];
    EXPECT_THAT(Ids(), SizeIs(kMaxManagers));
    EXPECT_TRUE(Exists(File("manager-1"))) << "the owner stays";
    // (It is the oldest of those that live by now: it would be the next.)
    BIM_ASSERT_OK(
        WriteManager(Root(), Record("new-" + std::to_string(i), 5000)));
  }
}

TEST(IsOwned, SeesTheLock) {
  test::TempDir dir;
  test::InitDisk(dir.path(), "disk-1");
  const auto root = io::Dir::Open(dir.path());
  auto owned = IsOwned(*root);
  BIM_ASSERT_OK(owned.status());
  EXPECT_FALSE(*owned) << "no lock file";
  EXPECT_FALSE(Exists(dir / kBimDir)) << "nothing is made";
  auto disk = test::ClaimDisk(dir.path());
  EXPECT_TRUE(*IsOwned(*root));
  EXPECT_TRUE(*IsOwned(*root));
  disk.reset();
  EXPECT_FALSE(*IsOwned(*root));
  EXPECT_TRUE(test::ClaimDisk(dir.path())) << "it holds nothing afterwards";
}

}  // namespace
}  // namespace bim::store
