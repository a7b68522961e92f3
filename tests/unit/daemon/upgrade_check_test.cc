#include "daemon/upgrade_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "pkg/manager/desired.h"
#include "tests/unit/store/scratch.h"

namespace bim::daemon {
namespace {

using nlohmann::json;
using store::HandoverPhase;
using store::HandoverRecord;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr uint64_t kGiB = uint64_t{1} << 30;

// A disk in use, with nothing wrong.
DiskFacts Good() {
  DiskFacts facts;
  facts.path = "/one";
  facts.uuid = "d1";
  facts.available_bytes = kGiB;
  facts.format =
      store::DiskFormat{meta::kDiskFormatVersion, meta::kDiskFormatMinVersion};
  store::OwnerRecord owner;
  owner.manager_id = "old";
  owner.version = "0.0.9";
  owner.epoch = 7;
  owner.api_version = meta::kApiVersion;
  owner.api_min_version = meta::kApiMinVersion;
  facts.owner = owner;
  facts.owned = true;
  facts.wanted = 3;
  return facts;
}

HandoverRecord Handover(HandoverPhase phase, bool automatic = false) {
  HandoverRecord record;
  record.phase = phase;
  record.automatic = automatic;
  record.owner = "old";
  record.candidate = "new";
  return record;
}

// What it says of one check: "stop: ...".
std::string Said(const DiskFacts& facts, const std::string& check,
                 const Candidate& candidate = {}) {
  std::string said;
  for (const Finding& finding : JudgeDisk(facts, candidate)) {
    EXPECT_EQ(finding.disk, facts.path);
    EXPECT_EQ(finding.remedy.empty(), finding.level == Level::kOk)
        << finding.what;
    if (finding.check != check) continue;
    said += std::string(LevelName(finding.level)) + ": " + finding.what + "; " +
            finding.remedy + "\n";
  }
  return said;
}
Level Worst(const DiskFacts& facts, const Candidate& candidate = {}) {
  return WorstOf(JudgeDisk(facts, candidate));
}

TEST(JudgeDisk, AGoodDiskIsFine) {
  EXPECT_EQ(Worst(Good()), Level::kOk);
  EXPECT_THAT(Said(Good(), "owner"),
              AllOf(HasSubstr("manager old"), HasSubstr("version 0.0.9"),
                    HasSubstr("epoch 7"), HasSubstr("lives")));
  DiskFacts free = Good();
  free.owned = false;
  EXPECT_EQ(Worst(free), Level::kOk);
  EXPECT_THAT(Said(free, "owner"), HasSubstr("nobody owns it now"));
  EXPECT_EQ(Said(free, "api"), "") << "nobody to hand it over";
}

TEST(JudgeDisk, ANewDiskIsFine) {
  DiskFacts facts;
  facts.path = "/new";
  facts.available_bytes = kGiB;
  EXPECT_EQ(Worst(facts), Level::kOk);
  EXPECT_THAT(Said(facts, "format"), HasSubstr("owned it yet"));
  facts.owned = true;  // between its lock and its record
  EXPECT_EQ(Worst(facts), Level::kWarning);
}

TEST(JudgeDisk, WithoutADiskNothingElseIsSaid) {
  for (const base::Status& status :
       {base::NotFoundError("no directory"),
        base::FailedPreconditionError("another disk"),
        base::DataLossError("damaged"), base::UnavailableError("EIO")}) {
    DiskFacts facts = Good();
    facts.opened = status;
    const auto findings = JudgeDisk(facts, {});
    ASSERT_THAT(findings, SizeIs(1));
    EXPECT_EQ(findings[0].level, Level::kStop);
    EXPECT_EQ(findings[0].what, status.message());
  }
}

TEST(JudgeDisk, Formats) {
  DiskFacts facts = Good();
  const int ours = meta::kDiskFormatVersion;
  facts.format = store::DiskFormat{ours + 5, ours};
  EXPECT_EQ(Worst(facts), Level::kOk) << "newer, but readable";
  facts.format = store::DiskFormat{ours + 5, ours + 3};
  EXPECT_THAT(Said(facts, "format"),
              AllOf(HasSubstr("stop"), HasSubstr(std::to_string(ours + 5)),
                    HasSubstr(std::to_string(ours + 3))));
  facts.format = store::DiskFormat{meta::kDiskFormatMinVersion - 1, 0};
  EXPECT_THAT(Said(facts, "format"), HasSubstr("stop"));
  facts.format = base::DataLossError("damaged");
  EXPECT_THAT(Said(facts, "format"), HasSubstr("stop: damaged"));
}

TEST(JudgeDisk, TheOwnerIsNeverGuessed) {
  DiskFacts facts = Good();
  for (const auto& status :
       {base::DataLossError("damaged"), base::NotFoundError("none")}) {
    facts.owner = status;
    EXPECT_THAT(Said(facts, "owner"),
                AllOf(HasSubstr("stop"), HasSubstr(status.message())));
  }
  facts = Good();
  facts.owned = base::PermissionDeniedError("a link");
  EXPECT_THAT(Said(facts, "owner"), HasSubstr("stop: a link"));
}

TEST(JudgeDisk, ApiRanges) {
  DiskFacts facts = Good();
  Candidate candidate;
  candidate.api = {7, 9};
  const struct {
    int min, max;
    Level level;
  } cases[] = {{7, 9, Level::kOk},        {1, 7, Level::kOk},
               {9, 12, Level::kOk},       {1, 6, Level::kWarning},
               {10, 12, Level::kWarning}, {0, 0, Level::kWarning}};
  for (const auto& one : cases) {
    facts.owner->api_min_version = one.min;
    facts.owner->api_version = one.max;
    EXPECT_EQ(Worst(facts, candidate), one.level) << one.min << " " << one.max;
  }
  EXPECT_THAT(Said(facts, "api", candidate),
              AllOf(HasSubstr("API 0"), HasSubstr("API 7 to 9"),
                    HasSubstr("be stopped")));
  facts.owned = false;
  EXPECT_EQ(Worst(facts, candidate), Level::kOk) << "nobody is stopped";
}

TEST(JudgeDisk, HandOvers) {
  DiskFacts facts = Good();
  facts.handover = std::optional(Handover(HandoverPhase::kBegun));
  for (const char* id : {"", "old", "new", "third"}) {
    EXPECT_THAT(Said(facts, "handover", {id}),
                AllOf(HasSubstr("stop"), HasSubstr("bim handover confirm"),
                      HasSubstr("bim handover rollback")))
        << id;
  }
  const struct {
    HandoverPhase phase;
    std::string id;
    Level level;
  } cases[] = {
      {HandoverPhase::kConfirmed, "new", Level::kOk},
      {HandoverPhase::kConfirmed, "old", Level::kStop},
      {HandoverPhase::kConfirmed, "", Level::kWarning},
      {HandoverPhase::kRolledBack, "old", Level::kOk},
      {HandoverPhase::kRolledBack, "new", Level::kStop},
      {HandoverPhase::kRolledBack, "", Level::kWarning},
  };
  for (const auto& one : cases) {
    facts.handover = std::optional(Handover(one.phase));
    EXPECT_EQ(Worst(facts, {one.id}), one.level)
        << store::HandoverPhaseName(one.phase) << " " << one.id;
    facts.handover = std::optional(Handover(one.phase, true));
    EXPECT_EQ(Worst(facts, {one.id}), Level::kOk) << "automatic";
  }
  facts.handover = base::DataLossError("damaged");
  EXPECT_THAT(Said(facts, "handover"), HasSubstr("stop: damaged"));
}

TEST(JudgeDisk, RecordsAndUnfinishedWork) {
  DiskFacts facts = Good();
  EXPECT_EQ(Said(facts, "unfinished"), "");
  facts.removing = 2;
  facts.unfinished = store::Unfinished{3, 4};
  EXPECT_EQ(Worst(facts), Level::kWarning);
  EXPECT_THAT(Said(facts, "unfinished"),
              AllOf(HasSubstr("resumed: 3"), HasSubstr("start over: 4"),
                    HasSubstr("not ended: 2")));
  facts.unreadable = {"/one/a.json: damaged"};
  EXPECT_THAT(Said(facts, "records"),
              AllOf(HasSubstr("stop"), HasSubstr("1 (/one/a.json: damaged)")));
  for (int i = 0; i < 10; ++i) {
    facts.unreadable.push_back("/one/" + std::to_string(i));
  }
  EXPECT_THAT(Said(facts, "records"), HasSubstr("/one/3; and others)"));
}

TEST(JudgeDisk, SpaceAndReadOnly) {
  DiskFacts facts = Good();
  facts.available_bytes = kMinMetadataBytes;
  EXPECT_EQ(Worst(facts), Level::kOk);
  --facts.available_bytes;
  EXPECT_THAT(Said(facts, "space"), HasSubstr("warning: 16.0 MiB"));
  facts = Good();
  facts.read_only = true;
  EXPECT_THAT(Said(facts, "disk"),
              AllOf(HasSubstr("warning"), HasSubstr("read-only")));
}

TEST(JudgeConfig, EachMistakeIsAStop) {
  auto findings = JudgeConfig(
      base::InvalidArgumentError("f:1: a: unknown key\nf:2: b: unknown key"));
  ASSERT_THAT(findings, SizeIs(2));
  EXPECT_EQ(findings[1].what, "f:2: b: unknown key");
  EXPECT_EQ(WorstOf(findings), Level::kStop);
  auto good = MergeConfig(std::nullopt, {}, {});
  ASSERT_TRUE(good.ok());
  good->warnings.clear();
  findings = JudgeConfig(good);
  ASSERT_THAT(findings, SizeIs(1));
  EXPECT_EQ(findings[0].level, Level::kOk);
  good->warnings = {"reachable by all"};
  findings = JudgeConfig(good);
  ASSERT_THAT(findings, SizeIs(1));
  EXPECT_EQ(findings[0].level, Level::kWarning);
}

TEST(Findings, AreShown) {
  EXPECT_EQ(WorstOf({}), Level::kOk);
  EXPECT_EQ(static_cast<int>(ExitCodeOf(Level::kOk)), 0);
  EXPECT_EQ(static_cast<int>(ExitCodeOf(Level::kWarning)), 1);
  EXPECT_EQ(static_cast<int>(ExitCodeOf(Level::kStop)), 2);
  const std::vector<Finding> findings = {
      {"/one", "format", Level::kOk, "fine", ""},
      {"/one", "owner", Level::kStop, "who?", "restore it"},
      {"", "configuration", Level::kWarning, "odd", "look"}};
  EXPECT_EQ(RenderFindings(findings),
            "DISK  LEVEL    WHAT  WHAT TO DO\n"
            "/one  ok       fine  -\n"
            "/one  stop     who?  restore it\n"
            "-     warning  odd   look\n");
  const json told = json::parse(FindingsJson(findings));
  EXPECT_EQ(told["result"], "stop");
  EXPECT_EQ(told["api_version"], meta::kApiVersion);
  EXPECT_EQ(told["disk_format_version"], meta::kDiskFormatVersion);
  EXPECT_EQ(told["findings"][1], json({{"disk", "/one"},
                                       {"check", "owner"},
                                       {"level", "stop"},
                                       {"what", "who?"},
                                       {"remedy", "restore it"}}));
}

// Every file below with its content.
std::map<std::string, std::string> Files(const std::string& root) {
  std::map<std::string, std::string> files;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(root)) {
    files[entry.path().string()] =
        entry.is_regular_file() ? test::ReadAll(entry.path().string()) : "";
  }
  return files;
}

TEST(LookAtDisk, SeesWhatLiesThereAndTouchesNothing) {
  test::TempDir dir;
  EXPECT_EQ(LookAtDisk({dir / "nowhere", ""}).opened.code(),
            base::Code::kNotFound);
  EXPECT_EQ(LookAtDisk({dir.path(), ""}).opened.code(), base::Code::kNotFound);
  test::InitDisk(dir.path(), "disk-1");
  EXPECT_EQ(LookAtDisk({dir.path(), "disk-2"}).opened.code(),
            base::Code::kFailedPrecondition);
  auto before = Files(dir.path());
  DiskFacts facts = LookAtDisk({dir.path(), "disk-1"});
  EXPECT_EQ(Files(dir.path()), before);
  BIM_EXPECT_OK(facts.opened);
  EXPECT_EQ(facts.uuid, "disk-1");
  EXPECT_GT(facts.available_bytes, 0u);
  EXPECT_EQ(facts.format.status().code(), base::Code::kNotFound);
  EXPECT_FALSE(*facts.owned);

  const auto disk = test::ClaimDisk(dir.path());
  manager::Desired desired;
  desired.spec.name = "a";
  desired.spec.uuid = "1";
  desired.spec.source.url = "http://h/a";
  BIM_ASSERT_OK(disk->PutDesired({"a", "1"}, manager::EncodeDesired(desired)));
  desired.spec.name = "b";
  desired.removing = true;
  BIM_ASSERT_OK(disk->PutDesired({"b", "1"}, manager::EncodeDesired(desired)));
  BIM_ASSERT_OK(disk->PutDesired({"c", "1"}, "{"));
  std::filesystem::create_directories(dir / "backing-images/a-1");
  test::WriteAll(dir / "backing-images/a-1/backing.tmp", "x");
  BIM_ASSERT_OK(disk->PutHandover(Handover(HandoverPhase::kBegun)));
  before = Files(dir.path());
  facts = LookAtDisk({dir.path(), ""});
  EXPECT_EQ(Files(dir.path()), before);
  EXPECT_TRUE(facts.format.ok() && facts.owner.ok());
  EXPECT_EQ(facts.owner->manager_id, "manager-1");
  EXPECT_TRUE(*facts.owned);
  ASSERT_TRUE(facts.handover.ok() && *facts.handover);
  EXPECT_EQ(facts.wanted, 2u);
  EXPECT_EQ(facts.removing, 1u);
  EXPECT_THAT(facts.unreadable,
              ElementsAre(HasSubstr("desired/c-1.json: a record of what is")));
  EXPECT_EQ(facts.unfinished->others, 1u);
  EXPECT_EQ(facts.unfinished->resumable, 0u);
}

}  // namespace
}  // namespace bim::daemon
