#include "daemon/suggest.h"

#include <gtest/gtest.h>

#include <vector>

namespace bim::daemon {
namespace {

const std::vector<std::string> kWords = {"listen", "socket", "data_listen",
                                         "max"};

TEST(EditDistance, CountsEditsAndSwaps) {
  EXPECT_EQ(EditDistance("", ""), 0u);
  EXPECT_EQ(EditDistance("", "abc"), 3u);
  EXPECT_EQ(EditDistance("abc", "abc"), 0u);
  EXPECT_EQ(EditDistance("abc", "abd"), 1u);
  EXPECT_EQ(EditDistance("abc", "acb"), 1u);
  EXPECT_EQ(EditDistance("listn", "listen"), 1u);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3u);
}

TEST(Nearest, FindsTypingMistakes) {
  EXPECT_EQ(Nearest("listn", kWords), "listen");
  EXPECT_EQ(Nearest("lisetn", kWords), "listen");
  EXPECT_EQ(Nearest("sokcet", kWords), "socket");
  EXPECT_EQ(Nearest("maz", kWords), "max");
  EXPECT_EQ(Nearest("data_listne", kWords), "data_listen");
}

TEST(Nearest, KeepsSilentWhenNothingIsNear) {
  EXPECT_EQ(Nearest("proxy", kWords), "");
  EXPECT_EQ(Nearest("min", kWords), "");
  EXPECT_EQ(Nearest("", kWords), "");
  EXPECT_EQ(Nearest("listen", {}), "");
}

TEST(DidYouMean, IsTheEndOfASentence) {
  EXPECT_EQ(DidYouMean("listn", kWords), "; did you mean \"listen\"?");
  EXPECT_EQ(DidYouMean("proxy", kWords), "");
}

}  // namespace
}  // namespace bim::daemon
