#include <gtest/gtest.h>

#include <string>

#include "pkg/http/client.h"

namespace bim::http {
namespace {

using std::chrono::seconds;
using std::chrono::system_clock;

TEST(ParseContentRange, Reads) {
  EXPECT_EQ(ParseContentRange("bytes 0-99/200"), (ContentRange{0, 99, 200}));
  EXPECT_EQ(ParseContentRange("bytes 0-99/*"),
            (ContentRange{0, 99, std::nullopt}));
  EXPECT_EQ(ParseContentRange("bytes 5-5/6"), (ContentRange{5, 5, 6}));
  EXPECT_EQ(ParseContentRange("bytes 0-18446744073709551614/"
                              "18446744073709551615"),
            (ContentRange{0, 18446744073709551614u, 18446744073709551615u}));
}

TEST(ParseContentRange, RefusesAnythingElse) {
  for (const char* value : {"",
                            "bytes",
                            "bytes ",
                            "bytes 0-99",
                            "bytes 0-99/",
                            "bytes=0-99/200",
                            "Bytes 0-99/200",
                            "bytes  0-99/200",
                            " bytes 0-99/200",
                            "bytes 0-99/200 ",
                            "bytes 0-99/200,",
                            "bytes */200",
                            "bytes 99-0/200",
                            "bytes 0-200/200",
                            "bytes -1-5/200",
                            "bytes +1-5/200",
                            "bytes 0-5/-7",
                            "bytes 0-5/**",
                            "bytes a-5/6",
                            "bytes 0-b/6",
                            "bytes 0-5/c",
                            "bytes 0x0-5/6",
                            "bytes 0-99/18446744073709551616",
                            "bytes 18446744073709551616-18446744073709551617/*",
                            "items 0-9/10",
                            "bytes 0 -9/10",
                            "bytes 0-/10",
                            "bytes -9/10"}) {
    EXPECT_EQ(ParseContentRange(value), std::nullopt) << value;
  }
}

TEST(ParseRetryAfter, Seconds) {
  const auto now = system_clock::from_time_t(784111777);
  EXPECT_EQ(ParseRetryAfter("0", now), seconds(0));
  EXPECT_EQ(ParseRetryAfter("120", now), seconds(120));
  EXPECT_EQ(ParseRetryAfter("  7\t", now), seconds(7));
  EXPECT_EQ(ParseRetryAfter("-5", now), seconds(0));
  EXPECT_EQ(ParseRetryAfter("86400", now), seconds(86400));
  EXPECT_EQ(ParseRetryAfter("86401", now), seconds(86400));
  EXPECT_EQ(ParseRetryAfter("99999999999999999999999", now), seconds(86400));
}

TEST(ParseRetryAfter, Dates) {
  const auto now = system_clock::from_time_t(784111777);  // 08:49:37
  EXPECT_EQ(ParseRetryAfter("Sun, 06 Nov 1994 08:50:37 GMT", now), seconds(60));
  EXPECT_EQ(ParseRetryAfter("Sunday, 06-Nov-94 08:50:37 GMT", now),
            seconds(60));
  EXPECT_EQ(ParseRetryAfter("Sun Nov  6 08:50:37 1994", now), seconds(60));
  EXPECT_EQ(ParseRetryAfter("Sun, 06 Nov 1994 08:49:37 GMT", now), seconds(0));
  EXPECT_EQ(ParseRetryAfter("Sun, 06 Nov 1994 08:00:00 GMT", now), seconds(0));
  EXPECT_EQ(ParseRetryAfter("Sun, 06 Nov 2044 08:00:00 GMT", now),
            seconds(86400));
}

TEST(ParseRetryAfter, Unreadable) {
  const auto now = system_clock::from_time_t(784111777);
  for (const char* value : {"", " ", "-", "soon", "1.5", "1e3", "5 seconds",
                            "+5", "0x10", "--5", "1994-11-06", "\xff"}) {
    EXPECT_EQ(ParseRetryAfter(value, now), std::nullopt) << value;
  }
  EXPECT_EQ(ParseRetryAfter(std::string(1000, 'S'), now), std::nullopt);
}

}  // namespace
}  // namespace bim::http
