#include "pkg/base/names.h"

#include <gtest/gtest.h>

#include <set>

namespace bim::base {
namespace {

bool Valid(std::string_view text) {
  const Status status = CheckName(text, "name");
  if (!status.ok()) {
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_TRUE(status.message().starts_with("name")) << status.message();
    for (char c : status.message()) {
      EXPECT_TRUE(c >= 0x20 && c < 0x7f) << "shown escaped";
    }
    EXPECT_LT(status.message().size(), 300u);
  }
  return status.ok();
}

TEST(CheckNameTest, EveryCharacterFirstAndLater) {
  for (int value = 0; value < 256; ++value) {
    const char c = static_cast<char>(value);
    const bool alnum = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                       (c >= 'A' && c <= 'Z');
    EXPECT_EQ(Valid(std::string(1, c)), alnum) << value;
    EXPECT_EQ(Valid(std::string("a") + c + "b"),
              alnum || c == '_' || c == '.' || c == '-')
        << value;
  }
}

TEST(CheckNameTest, Lengths) {
  for (size_t length = 0; length < 200; ++length) {
    EXPECT_EQ(Valid(std::string(length, 'a')), length >= 1 && length <= 64);
  }
}

TEST(CheckNameTest, Dots) {
  EXPECT_TRUE(Valid("a.b"));
  EXPECT_TRUE(Valid("a."));
  for (const char* name : {"..", ".", ".a", "a..b", "a..", "../a", "a/../b"}) {
    EXPECT_FALSE(Valid(name)) << name;
  }
}

TEST(PrintableTest, EscapesAndIsBounded) {
  EXPECT_EQ(Printable("abc"), "abc");
  EXPECT_EQ(Printable(std::string_view("a\n\0\x7f\xff", 5)),
            "a\\x0a\\x00\\x7f\\xff");
  EXPECT_EQ(Printable(std::string(80, 'a')), std::string(80, 'a'));
  EXPECT_EQ(Printable(std::string(81, 'a')), std::string(80, 'a') + "...");
  EXPECT_EQ(Printable("abcdef", 3), "abc...");
}

TEST(GenerateUuidTest, Version4LowerCaseAndDifferent) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::string uuid = GenerateUuid();
    ASSERT_EQ(uuid.size(), 36u);
    for (size_t at = 0; at < 36; ++at) {
      const bool dash = at == 8 || at == 13 || at == 18 || at == 23;
      EXPECT_EQ(uuid[at] == '-', dash);
      if (!dash) {
        EXPECT_NE(std::string("0123456789abcdef").find(uuid[at]),
                  std::string::npos);
      }
    }
    EXPECT_EQ(uuid[14], '4');
    EXPECT_NE(std::string("89ab").find(uuid[19]), std::string::npos);
    EXPECT_TRUE(CheckName(uuid, "uuid").ok());
    EXPECT_TRUE(seen.insert(uuid).second);
  }
}

}  // namespace
}  // namespace bim::base
