#include "daemon/table.h"

#include <gtest/gtest.h>

namespace bim::daemon {
namespace {

TEST(Table, AlignsColumns) {
  Table table({{"NAME"}, {"SIZE", Table::Align::kRight}, {"MESSAGE"}});
  table.AddRow({"debian-12", "2.0 GiB", ""});
  table.AddRow({"a", "512 B", "cannot read"});
  EXPECT_EQ(table.Render(),
            "NAME          SIZE  MESSAGE\n"
            "debian-12  2.0 GiB  -\n"
            "a            512 B  cannot read\n");
}

TEST(Table, CountsCharactersNotBytes) {
  Table table({{"A"}, {"B"}});
  table.AddRow({"\xC3\xA4\xC3\xB6", "x"});
  table.AddRow({"ab", "y"});
  EXPECT_EQ(table.Render(), "A   B\n\xC3\xA4\xC3\xB6  x\nab  y\n");
}

TEST(Table, ShowsNoControlCharacters) {
  Table table({{"A"}});
  table.AddRow({"\x1B[2Jx\ny"});
  EXPECT_EQ(table.Render(), "A\n?[2Jx?y\n");
}

TEST(RenderProgress, ShowsEverythingThatFits) {
  const Progress progress{.label = "debian",
                          .done_bytes = uint64_t{1} << 30,
                          .total_bytes = uint64_t{2} << 30,
                          .bytes_per_second = 128 << 20};
  EXPECT_EQ(RenderProgress(progress, 90),
            "debian   50% [===============>              ]"
            "  1.0 GiB / 2.0 GiB  128.0 MiB/s  8s left");
  for (size_t width : {0u, 1u, 5u, 20u, 40u, 60u, 79u}) {
    EXPECT_LE(RenderProgress(progress, width).size(), width);
  }
}

TEST(RenderProgress, TakesThePercentageWhenTheSizeIsNotKnown) {
  EXPECT_EQ(
      RenderProgress({.label = "x", .done_bytes = 512, .percent = 50}, 40),
      "x   50% [===========>           ]  512 B");
}

TEST(RenderProgress, LeavesOutWhatIsNotKnown) {
  EXPECT_EQ(RenderProgress({.label = "x", .done_bytes = 512}, 80), "x  512 B");
  EXPECT_EQ(
      RenderProgress({.label = "x", .done_bytes = 9, .total_bytes = 8}, 30),
      "x  100%  8 B / 8 B");
}

}  // namespace
}  // namespace bim::daemon
