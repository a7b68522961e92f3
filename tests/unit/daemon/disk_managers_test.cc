#include "daemon/disk_managers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace bim::daemon {
namespace {

using nlohmann::json;
using store::FoundManager;
using store::ManagerRecord;
using store::ManagerRole;
using store::OwnerRecord;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

OwnerRecord Alive(const std::string& id, int64_t since_ns = 1) {
  OwnerRecord record;
  store::DescribeSelf(record);
  record.manager_id = id;
  record.version = "0.1.0";
  record.epoch = 7;
  record.since_ns = since_ns;
  return record;
}
OwnerRecord Dead(const std::string& id, int64_t since_ns = 1) {
  OwnerRecord record = Alive(id, since_ns);
  record.boot_id = "another";
  return record;
}
OwnerRecord Elsewhere(const std::string& id, int64_t since_ns = 1) {
  OwnerRecord record = Alive(id, since_ns);
  record.pid_namespace = "pid:[1]";
  return record;
}
FoundManager Found(const OwnerRecord& record,
                   ManagerRole role = ManagerRole::kOwner) {
  return {record.manager_id, ManagerRecord{record, role}, ""};
}

std::string Shown(const ManagerRow& row) {
  return row.manager_id + ": " + std::string(StandingName(row.standing)) +
         ", " + std::string(LifeName(row.life));
}
std::vector<std::string> Shown(const std::vector<ManagerRow>& rows) {
  std::vector<std::string> texts;
  for (const ManagerRow& row : rows) texts.push_back(Shown(row));
  return texts;
}

TEST(JudgeManagers, TheLockSaysWhoOwns) {
  // By its owner record the manager is alive, dead or not seen from here.
  const struct {
    OwnerRecord owner;
    const char *owned, *free;
  } cases[] = {
      {Alive("m"), "m: owner, alive", "m: last owner, alive"},
      {Dead("m"), "m: owner, alive", "m: last owner, dead"},
      {Elsewhere("m"), "m: owner, alive", "m: last owner, dead"},
  };
  for (const auto& one : cases) {
    EXPECT_THAT(Shown(JudgeManagers(one.owner, true, {})),
                ElementsAre(one.owned));
    EXPECT_THAT(Shown(JudgeManagers(one.owner, false, {})),
                ElementsAre(one.free));
    // The record beside it is older, or the same.
    EXPECT_THAT(Shown(JudgeManagers(one.owner, true, {Found(Dead("m"))})),
                ElementsAre(one.owned));
    EXPECT_THAT(
        Shown(JudgeManagers(one.owner, true, {{"m", std::nullopt, "bad"}})),
        ElementsAre(one.owned));
  }
}

TEST(JudgeManagers, OthersAreSeenAsFarAsTheyCanBe) {
  EXPECT_THAT(
      Shown(JudgeManagers(Alive("z", 9), true,
                          {{"bad", std::nullopt, "damaged"},
                           Found(Dead("b", 2)),
                           Found(Elsewhere("c", 3), ManagerRole::kCandidate),
                           Found(Alive("d", 4), ManagerRole::kCandidate),
                           Found(Elsewhere("e", 5))})),
      ElementsAre("z: owner, alive", "e: was owner, unknown",
                  "d: candidate, alive", "c: candidate, unknown",
                  "b: was owner, dead", "bad: damaged, unknown"));
  EXPECT_THAT(Shown(JudgeManagers(std::nullopt, false, {Found(Dead("b"))})),
              ElementsAre("b: was owner, dead"));
  EXPECT_THAT(JudgeManagers(std::nullopt, false, {}), SizeIs(0));
}

TEST(PlanCleanup, SparesTheOwnerAndTheUnseen) {
  for (int standing = 0; standing <= static_cast<int>(Standing::kDamaged);
       ++standing) {
    for (int life = 0; life <= static_cast<int>(Life::kUnknown); ++life) {
      ManagerRow row;
      row.standing = static_cast<Standing>(standing);
      row.life = static_cast<Life>(life);
      const bool owner = row.standing == Standing::kOwner ||
                         row.standing == Standing::kLastOwner;
      const bool damaged = row.standing == Standing::kDamaged;
      const CleanupStep usual = PlanCleanup(row, false);
      const CleanupStep forced = PlanCleanup(row, true);
      EXPECT_EQ(usual.remove, !owner && !damaged && row.life == Life::kDead)
          << Shown(row);
      EXPECT_EQ(forced.remove, !owner && (damaged || row.life != Life::kAlive))
          << Shown(row);
      EXPECT_FALSE(usual.why.empty() || forced.why.empty()) << Shown(row);
      if (!usual.remove && forced.remove) {
        EXPECT_THAT(usual.why, HasSubstr("--force"));
      }
    }
  }
}

DiskManagers OneDisk() {
  DiskManagers disk;
  disk.path = "/one";
  disk.uuid = "d1";
  disk.owned = true;
  disk.managers =
      JudgeManagers(Alive("m"), true, {{"bad", std::nullopt, "it is damaged"}});
  return disk;
}

TEST(RenderManagers, IsOneLineAManager) {
  const std::string table = RenderManagers({OneDisk()});
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 3);
  EXPECT_THAT(table, HasSubstr("DISK  MANAGER  ROLE     LIFE     VERSION"));
  EXPECT_THAT(table, HasSubstr("/one  m        owner    alive    0.1.0"));
  EXPECT_THAT(table, HasSubstr("/one  bad      damaged  unknown  -"));
  EXPECT_THAT(table, HasSubstr("it is damaged\n"));
}

TEST(ManagersJson, HasEverything) {
  DiskManagers gone;
  gone.path = "/gone";
  gone.status = base::NotFoundError("why");
  const json told = json::parse(ManagersJson({OneDisk(), gone}));
  ASSERT_THAT(told["disks"], SizeIs(2));
  const json& disk = told["disks"][0];
  EXPECT_EQ(disk["path"], "/one");
  EXPECT_EQ(disk["owned"], true);
  const OwnerRecord self = Alive("m");
  EXPECT_EQ(disk["managers"][0],
            json({{"manager_id", "m"},
                  {"role", "owner"},
                  {"life", "alive"},
                  {"version", "0.1.0"},
                  {"api_version", self.api_version},
                  {"api_min_version", self.api_min_version},
                  {"epoch", 7},
                  {"pid", self.pid},
                  {"pid_namespace", self.pid_namespace},
                  {"endpoint", ""},
                  {"since", "1970-01-01T00:00:00.000000001Z"},
                  {"error", ""}}));
  EXPECT_EQ(disk["managers"][1]["since"], "");
  EXPECT_EQ(disk["managers"][1]["error"], "it is damaged");
  EXPECT_EQ(told["disks"][1]["error"], "why");
  EXPECT_THAT(told["disks"][1]["managers"], SizeIs(0));
}

TEST(Cleaned, SaysWhatWasRemoved) {
  DiskCleaned disk;
  disk.path = "/one";
  for (const ManagerRow& row :
       JudgeManagers(Alive("m"), true, {Found(Dead("old"))})) {
    disk.managers.push_back({row, PlanCleanup(row, false)});
  }
  EXPECT_THAT(
      RenderCleaned({disk}, false),
      HasSubstr("/one  old      was owner  dead   removed  it is dead"));
  EXPECT_THAT(RenderCleaned({disk}, true), HasSubstr("would be removed"));
  const json told = json::parse(CleanedJson({disk}, true));
  EXPECT_EQ(told["dry_run"], true);
  EXPECT_EQ(told["disks"][0]["removed"],
            json::array({{{"manager_id", "old"},
                          {"role", "was owner"},
                          {"life", "dead"},
                          {"why", "it is dead"}}}));
  EXPECT_EQ(told["disks"][0]["kept"][0]["manager_id"], "m");
}

}  // namespace
}  // namespace bim::daemon
