#include "pkg/meta/version.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace bim::meta {
namespace {

TEST(VersionTest, NumbersFitTogether) {
  EXPECT_GE(kApiMinVersion, 1);
  EXPECT_GE(kApiVersion, kApiMinVersion);
  EXPECT_GE(kDiskFormatMinVersion, 1);
  EXPECT_GE(kDiskFormatVersion, kDiskFormatMinVersion);
}

TEST(VersionTest, OverlapIsASharedVersion) {
  for (int a = 0; a < 6; ++a) {
    for (int b = a; b < 6; ++b) {
      for (int c = 0; c < 6; ++c) {
        for (int d = c; d < 6; ++d) {
          bool shared = false;
          for (int v = 0; v < 6; ++v) {
            shared = shared || (a <= v && v <= b && c <= v && v <= d);
          }
          EXPECT_EQ(Overlap({a, b}, {c, d}), shared);
        }
      }
    }
  }
}

TEST(VersionTest, Texts) {
  EXPECT_EQ(
      std::count(Version(), Version() + std::string(Version()).size(), '.'), 2);
  EXPECT_FALSE(std::string(GitCommit()).empty());
  EXPECT_EQ(std::string(BuildDate()).size(), 10u);
}

}  // namespace
}  // namespace bim::meta
