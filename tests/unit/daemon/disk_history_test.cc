#include "daemon/disk_history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace bim::daemon {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;

constexpr int64_t kSecond = 1'000'000'000;

store::HistoryEntry Entry(int64_t seconds, const std::string& name) {
  store::HistoryEntry entry;
  entry.time_ns = seconds * kSecond + 5;
  entry.what = store::HistoryEvent::kFailed;
  entry.name = name;
  entry.uuid = "u";
  entry.message = "why\nnot";
  entry.manager_id = "m";
  entry.version = "0.1.0";
  entry.epoch = 7;
  return entry;
}

std::vector<DiskHistory> TwoDisks() {
  DiskHistory one;
  one.path = "/one";
  one.uuid = "d1";
  one.history.entries = {Entry(1, "a"), Entry(3, "b"), Entry(3, "c")};
  one.history.skipped = 2;
  DiskHistory two;
  two.path = "/two";
  two.history.entries = {Entry(2, "a"), Entry(4, "a")};
  DiskHistory gone;
  gone.path = "/gone";
  gone.status = base::NotFoundError("no directory at /gone");
  return {one, two, gone};
}

std::string Names(const std::vector<HistoryRow>& rows) {
  std::string names;
  for (const HistoryRow& row : rows) names += row.path + row.entry.name + " ";
  return names;
}

TEST(SelectHistory, MergesByTimeAndKeepsTheNewest) {
  EXPECT_EQ(Names(SelectHistory(TwoDisks(), "", 0)),
            "/onea /twoa /oneb /onec /twoa ");
  EXPECT_EQ(Names(SelectHistory(TwoDisks(), "", 2)), "/onec /twoa ");
  EXPECT_EQ(Names(SelectHistory(TwoDisks(), "a", 0)), "/onea /twoa /twoa ");
  EXPECT_EQ(Names(SelectHistory(TwoDisks(), "a", 1)), "/twoa ");
  EXPECT_EQ(Names(SelectHistory(TwoDisks(), "none", 1)), "");
  // Of one disk alone the order is that of the file.
  DiskHistory one = TwoDisks()[0];
  one.history.entries = {Entry(9, "late"), Entry(1, "early")};
  EXPECT_EQ(Names(SelectHistory({one}, "", 0)), "/onelate /oneearly ");
}

TEST(RenderHistory, IsOneLineAnEntry) {
  const auto rows = SelectHistory(TwoDisks(), "b", 0);
  const std::string table = RenderHistory(rows);
  EXPECT_THAT(table, HasSubstr("TIME                  DISK  EVENT   NAME"));
  EXPECT_THAT(table, HasSubstr("1970-01-01T00:00:03Z  /one  failed  b     u  "
                               "       7  why?not\n"));
}

TEST(HistoryJson, HasEverything) {
  const auto disks = TwoDisks();
  const json told =
      json::parse(HistoryJson(disks, SelectHistory(disks, "b", 0)));
  ASSERT_THAT(told["entries"], SizeIs(1));
  EXPECT_EQ(told["entries"][0],
            json({{"time", "1970-01-01T00:00:03.000000005Z"},
                  {"disk", "/one"},
                  {"event", "failed"},
                  {"name", "b"},
                  {"uuid", "u"},
                  {"message", "why\nnot"},
                  {"manager_id", "m"},
                  {"version", "0.1.0"},
                  {"epoch", 7}}));
  ASSERT_THAT(told["disks"], SizeIs(3));
  EXPECT_EQ(
      told["disks"][0],
      json({{"path", "/one"}, {"uuid", "d1"}, {"skipped", 2}, {"error", ""}}));
  EXPECT_EQ(told["disks"][2]["error"], "no directory at /gone");
}

TEST(Pruned, SaysHowMany) {
  DiskPruned one{"/one", "d1", {3, 4}, {}};
  DiskPruned gone{"/gone", "", {}, base::NotFoundError("why")};
  EXPECT_EQ(RenderPruned({one, gone}, false),
            "DISK  DROPPED  KEPT\n/one        3     4\n");
  EXPECT_THAT(RenderPruned({one}, true), HasSubstr("WOULD DROP"));
  EXPECT_THAT(RenderPruned({one}, false), Not(HasSubstr("WOULD")));
  const json told = json::parse(PrunedJson({one, gone}, true));
  EXPECT_EQ(told["dry_run"], true);
  EXPECT_EQ(told["disks"][0], json({{"path", "/one"},
                                    {"uuid", "d1"},
                                    {"dropped", 3},
                                    {"kept", 4},
                                    {"error", ""}}));
  EXPECT_EQ(told["disks"][1]["error"], "why");
}

}  // namespace
}  // namespace bim::daemon
