#include "pkg/http/target.h"

#include <gtest/gtest.h>

namespace bim::http {
namespace {

TEST(ParseTarget, Takes) {
  EXPECT_EQ(ParseTarget("/"), (Target{"/", "/", ""}));
  EXPECT_EQ(ParseTarget("/a/b"), (Target{"/a/b", "/a/b", ""}));
  EXPECT_EQ(ParseTarget("/a%20b%2Fc%2f"),
            (Target{"/a b/c/", "/a%20b%2Fc%2f", ""}));
  EXPECT_EQ(ParseTarget("/a?b=%20&c?d"), (Target{"/a", "/a", "b=%20&c?d"}));
  EXPECT_EQ(ParseTarget("/a?"), (Target{"/a", "/a", ""}));
  EXPECT_EQ(ParseTarget("/../x"), (Target{"/../x", "/../x", ""}));
  EXPECT_EQ(ParseTarget("/%2525"), (Target{"/%25", "/%2525", ""}));
  EXPECT_EQ(ParseTarget("/a+b"), (Target{"/a+b", "/a+b", ""}));
  EXPECT_EQ(ParseTarget("/%C3%A4"), (Target{"/\xc3\xa4", "/%C3%A4", ""}));
  EXPECT_EQ(ParseTarget("http://host:1/p?q"), (Target{"/p", "/p", "q"}));
  EXPECT_EQ(ParseTarget("HTTPS://host/"), (Target{"/", "/", ""}));
}

TEST(ParseTarget, Refuses) {
  for (const char* target :
       {"", "*", "a", "?q", "host:80", "http://host", "http://host?/",
        "http:///", "ftp://host/", "/%", "/%2", "/%2g", "/%g2", "/%-1", "/%00",
        "/a%00b", "/a#b", "/% 0"}) {
    EXPECT_EQ(ParseTarget(target), std::nullopt) << target;
  }
  EXPECT_EQ(ParseTarget(std::string_view("/a\0b", 4)), std::nullopt);
}

}  // namespace
}  // namespace bim::http
