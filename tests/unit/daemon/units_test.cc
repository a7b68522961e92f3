#include "daemon/units.h"

#include <gtest/gtest.h>

namespace bim::daemon {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(ParseDuration, ReadsUnitsAndSequences) {
  const std::pair<const char*, int64_t> kCases[] = {
      {"0", 0},
      {"0s", 0},
      {"250ms", 250},
      {"30s", 30'000},
      {"5m", 300'000},
      {"2h", 7'200'000},
      {"1d", 86'400'000},
      {"1m30s", 90'000},
      {"1h2m3s4ms", 3'723'004},
      {"30d", 2'592'000'000},
      {"365d12h", 31'579'200'000}};
  for (const auto& [text, count] : kCases) {
    const auto duration = ParseDuration(text);
    ASSERT_TRUE(duration.ok()) << text;
    EXPECT_EQ(duration->count(), count) << text;
  }
}

TEST(ParseDuration, RefusesWhatIsNotOne) {
  for (const char* text :
       {"", "30", "s", "-1s", "1.5s", "30 s", "30S", "5min", "1s 2s", " 1s",
        "99999999999999999999s", "9999999999999999d", "1s2"}) {
    const auto duration = ParseDuration(text);
    ASSERT_FALSE(duration.ok()) << text;
    EXPECT_NE(
        duration.status().message().find(std::string("found \"") + text + "\""),
        std::string::npos);
  }
}

TEST(FormatDuration, ReadsBack) {
  for (int64_t count : {0L, 1L, 999L, 1'000L, 60'000L, 90'000L, 3'723'004L,
                        86'400'000L, 90'061'001L}) {
    const milliseconds duration(count);
    EXPECT_EQ(*ParseDuration(FormatDuration(duration)), duration)
        << FormatDuration(duration);
  }
  EXPECT_EQ(FormatDuration(seconds(90)), "1m30s");
}

TEST(ParseSize, ReadsBytesAndUnits) {
  const std::pair<const char*, uint64_t> kCases[] = {
      {"0", 0},
      {"1048576", 1048576},
      {"1B", 1},
      {"1KiB", 1024},
      {"64GiB", uint64_t{64} << 30},
      {"64 GiB", uint64_t{64} << 30},
      {"64gib", uint64_t{64} << 30},
      {"16TiB", uint64_t{16} << 40},
      {"500MB", 500'000'000},
      {"18446744073709551615", UINT64_MAX}};
  for (const auto& [text, bytes] : kCases) {
    const auto size = ParseSize(text);
    ASSERT_TRUE(size.ok()) << text;
    EXPECT_EQ(*size, bytes) << text;
  }
}

TEST(ParseSize, RefusesWhatIsNotOne) {
  for (const char* text : {"", "GiB", "-1", "1.5GiB", "64G", "64 ", "1 2",
                           "18446744073709551616", "99999999TiB", "0x10"}) {
    EXPECT_FALSE(ParseSize(text).ok()) << text;
  }
}

TEST(FormatSize, ReadsBack) {
  for (uint64_t bytes :
       {uint64_t{0}, uint64_t{1}, uint64_t{1000}, uint64_t{1024},
        uint64_t{1025}, uint64_t{64} << 30, uint64_t{16} << 40, UINT64_MAX}) {
    EXPECT_EQ(*ParseSize(FormatSize(bytes)), bytes);
  }
  EXPECT_EQ(FormatSize(uint64_t{64} << 30), "64GiB");
  EXPECT_EQ(FormatSize(1000), "1000");
}

TEST(ParseFileMode, ReadsOctalOnly) {
  EXPECT_EQ(*ParseFileMode("0644"), 0644u);
  EXPECT_EQ(*ParseFileMode("600"), 0600u);
  for (const char* text : {"", "6", "0888", "rw-r--r--", "07777777", "-644"}) {
    EXPECT_FALSE(ParseFileMode(text).ok()) << text;
  }
  EXPECT_EQ(FormatFileMode(0644), "0644");
}

TEST(HumanBytes, RoundsToOneDigit) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1.0 KiB");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(HumanBytes(uint64_t{2} << 30), "2.0 GiB");
  EXPECT_EQ(HumanBytes(UINT64_MAX), "16.0 EiB");
}

TEST(HumanDuration, PicksItsUnits) {
  EXPECT_EQ(HumanDuration(seconds(-1)), "0s");
  EXPECT_EQ(HumanDuration(seconds(59)), "59s");
  EXPECT_EQ(HumanDuration(seconds(190)), "3m10s");
  EXPECT_EQ(HumanDuration(seconds(7440)), "2h04m");
}

TEST(FormatTime, IsUtc) {
  EXPECT_EQ(FormatTime(0), "1970-01-01T00:00:00Z");
  EXPECT_EQ(FormatTime(1'772'366'400'999'999'999), "2026-03-01T12:00:00Z");
  EXPECT_EQ(FormatTimeNs(1'772'366'400'000'000'001),
            "2026-03-01T12:00:00.000000001Z");
  EXPECT_EQ(FormatTimeNs(-1), "1969-12-31T23:59:59.999999999Z");
  EXPECT_EQ(FormatTime(INT64_MAX), "2262-04-11T23:47:16Z");
  EXPECT_EQ(FormatTime(INT64_MIN), "1677-09-21T00:12:43Z");
}

}  // namespace
}  // namespace bim::daemon
