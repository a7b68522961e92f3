#include "pkg/api/data_request.h"

#include <gtest/gtest.h>

namespace bim::api {
namespace {

TEST(ParseImagePath, TakesThreeParts) {
  const auto path = ParseImagePath("/v1/images/a/b/data");
  ASSERT_TRUE(path);
  EXPECT_EQ(path->name, "a");
  EXPECT_EQ(path->uuid, "b");
  EXPECT_EQ(path->resource, "data");
  for (const char* other :
       {"", "/", "/v1/images/", "/v1/images/a/b", "/v1/images//b/data",
        "/v1/images/a//data", "/v1/images/a/b/c/data", "/v2/images/a/b/data"}) {
    EXPECT_FALSE(ParseImagePath(other)) << other;
  }
}

TEST(ParseQuery, TakesWhatIsAllowed) {
  const auto query = ParseQuery("&begin=1&disk=%2Fd%20x&", {"begin", "disk"});
  ASSERT_TRUE(query.ok());
  EXPECT_EQ(ValueOf(*query, "begin"), "1");
  EXPECT_EQ(ValueOf(*query, "disk"), "/d x");
  EXPECT_EQ(ValueOf(*query, "end"), "");
  EXPECT_TRUE(ParseQuery("", {}).ok());
  EXPECT_EQ(ParseQuery("x=1", {}).status().message(),
            "'x=1' in the query is not understood: expected nothing");
  EXPECT_EQ(ParseQuery("x=1", {"begin", "end"}).status().message(),
            "'x=1' in the query is not understood: expected at most one each "
            "of begin, end");
  for (const char* wrong : {"begin", "begin=", "begin=1&begin=2", "begin=%",
                            "begin=%0", "begin=%00", "=1"}) {
    EXPECT_EQ(ParseQuery(wrong, {"begin"}).status().code(),
              base::Code::kInvalidArgument)
        << wrong;
  }
}

TEST(ParseNumber, TakesDigitsOnly) {
  EXPECT_EQ(ParseNumber("0"), 0u);
  EXPECT_EQ(ParseNumber("18446744073709551615"), UINT64_MAX);
  for (const char* wrong :
       {"", "-1", "+1", " 1", "1 ", "0x1", "18446744073709551616", "1.0"}) {
    EXPECT_FALSE(ParseNumber(wrong)) << wrong;
  }
}

TEST(ListField, JoinsWhatCameSeveralTimes) {
  http::Request request;
  request.fields = {{"a", "1"}, {"b", "2"}, {"a", "3, 4"}};
  EXPECT_EQ(ListField(request, "a"), "1,3, 4");
  EXPECT_EQ(ListField(request, "c"), "");
}

TEST(AcceptsZstd, ReadsWeights) {
  for (const char* yes : {"zstd", "gzip, deflate, br, zstd", "ZSTD;q=0.1",
                          "gzip;q=1.0,zstd ; q=1", "zstd;q=0.001"}) {
    EXPECT_TRUE(AcceptsZstd(yes)) << yes;
  }
  for (const char* no : {"", "gzip", "*", "identity", "zstd;q=0",
                         "zstd; Q = 0.000", "zstdx", "x-zstd", "gzip;zstd"}) {
    EXPECT_FALSE(AcceptsZstd(no)) << no;
  }
}

TEST(Matches, ComparesStrongly) {
  EXPECT_TRUE(Matches("\"x\"", "\"x\""));
  EXPECT_TRUE(Matches("\"y\" , \"x\"", "\"x\""));
  EXPECT_TRUE(Matches(" * ", "\"x\""));
  EXPECT_TRUE(Matches("*", ""));
  for (const char* no : {"\"y\"", "W/\"x\"", "x", "", ",", "\"X\""}) {
    EXPECT_FALSE(Matches(no, "\"x\"")) << no;
  }
  EXPECT_FALSE(Matches(",", ""));
}

}  // namespace
}  // namespace bim::api
