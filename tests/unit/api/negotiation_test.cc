#include "pkg/api/negotiation.h"

#include <gtest/gtest.h>

#include <string>

namespace bim::api {
namespace {

constexpr meta::VersionRange kDaemon{3, 4};
constexpr auto kBad = base::Code::kInvalidArgument;
constexpr auto kRefused = base::Code::kFailedPrecondition;
constexpr auto kFine = base::Code::kOk;

struct Case {
  const char* version;
  const char* min_version;
  base::Code code;
};

class NegotiationTest : public testing::TestWithParam<Case> {};

TEST_P(NegotiationTest, Judges) {
  const Case& c = GetParam();
  const auto stated = StatedVersions(std::string_view(c.version),
                                     std::string_view(c.min_version));
  const base::Code code = stated.ok() ? CheckVersions(*stated, kDaemon).code()
                                      : stated.status().code();
  EXPECT_EQ(code, c.code) << c.version << " " << c.min_version;
}

INSTANTIATE_TEST_SUITE_P(
    All, NegotiationTest,
    testing::Values(
        Case{"", "", kFine}, Case{"0", "0", kFine}, Case{"4", "3", kFine},
        Case{"3", "", kFine}, Case{"", "4", kFine}, Case{"3", "1", kFine},
        Case{"9", "4", kFine}, Case{"9", "1", kFine}, Case{"2", "1", kRefused},
        Case{"6", "5", kRefused}, Case{"2", "", kRefused},
        Case{"", "5", kRefused}, Case{"2147483647", "5", kRefused},
        Case{"3", "4", kBad}, Case{"-1", "", kBad}, Case{"4", "-1", kBad},
        Case{"4x", "", kBad}, Case{"four", "", kBad}, Case{" 4", "", kBad},
        Case{"+4", "", kBad}, Case{"0x4", "", kBad}, Case{"4.0", "", kBad},
        Case{"2147483648", "", kBad}, Case{"99999999999999999999", "", kBad}));

TEST(Negotiation, SaysBothRanges) {
  EXPECT_EQ(CheckVersions(meta::VersionRange{1, 2}, kDaemon).message(),
            "the caller speaks API 1 to 2, this daemon speaks API 3 to 4");
}

TEST(Negotiation, FromNumbers) {
  EXPECT_EQ(**StatedVersions(int64_t{5}, int64_t{0}),
            (meta::VersionRange{5, 5}));
  EXPECT_FALSE(StatedVersions(int64_t{0}, int64_t{0})->has_value());
  EXPECT_EQ(StatedVersions(int64_t{1} << 40, int64_t{1}).status().code(), kBad);
}

}  // namespace
}  // namespace bim::api
