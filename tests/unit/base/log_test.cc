#include "pkg/base/log.h"

#include <gtest/gtest.h>

#include <string>

namespace bim::base {
namespace {

// What one message gives on standard error.
std::string Logged(bool json, const std::string& message) {
  EXPECT_TRUE(InitLog("info", json).ok());
  ::testing::internal::CaptureStderr();
  BIM_LOG_INFO("{}", message);
  return ::testing::internal::GetCapturedStderr();
}

TEST(InitLogTest, Levels) {
  for (const char* level : {"trace", "debug", "info", "warn", "error", "off"}) {
    EXPECT_TRUE(InitLog(level, false).ok()) << level;
  }
  for (const char* level : {"", "loud", "INFO", "0"}) {
    EXPECT_EQ(InitLog(level, false).code(), Code::kInvalidArgument) << level;
  }
}

TEST(InitLogTest, FiltersByLevel) {
  ASSERT_TRUE(InitLog("warn", false).ok());
  ::testing::internal::CaptureStderr();
  BIM_LOG_INFO("not this");
  BIM_LOG_WARN("but this");
  const std::string out = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(out.find("not this"), std::string::npos);
  EXPECT_NE(out.find("but this"), std::string::npos);
}

TEST(LogTest, JsonEscapesEveryByteBelowSpaceQuotesAndBackslashes) {
  for (int value = 1; value < 0x80; ++value) {
    const std::string out =
        Logged(true, std::string("<") + static_cast<char>(value) + ">");
    ASSERT_EQ(out.find('\n'), out.size() - 1) << "one line";
    char escaped[16];
    if (value < 0x20) {
      std::snprintf(escaped, sizeof(escaped), "<\\u%04x>", value);
    } else if (value == '"' || value == '\\') {
      std::snprintf(escaped, sizeof(escaped), "<\\%c>", value);
    } else {
      std::snprintf(escaped, sizeof(escaped), "<%c>", value);
    }
    EXPECT_NE(out.find("\"message\":\"" + std::string(escaped) + "\"}"),
              std::string::npos)
        << out;
  }
}

TEST(LogTest, JsonHasTimeLevelThread) {
  const std::string out = Logged(true, "hello");
  EXPECT_EQ(out.find("{\"time\":\"2"), 0u) << out;
  EXPECT_NE(out.find("Z\",\"level\":\"info\",\"thread\":"), std::string::npos)
      << out;
}

TEST(LogTest, TextStaysOneLine) {
  const std::string out = Logged(false, "a\nb\rc\x1b[31md");
  EXPECT_EQ(out.find('\n'), out.size() - 1) << out;
  EXPECT_EQ(out.find('\x1b'), std::string::npos);
  EXPECT_NE(out.find("a b c [31md"), std::string::npos) << out;
}

}  // namespace
}  // namespace bim::base
