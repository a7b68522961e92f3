#include "pkg/api/data_server.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/unit/api/fake_manager.h"

namespace bim::api {
namespace {

class DataServerTest : public testing::Test {
 protected:
  http::Response Get(const std::string& path, const std::string& query = "",
                     const std::string& method = "GET") {
    http::Request request;
    request.method = method;
    request.path = path;
    request.query = query;
    return DataHandler(manager_)(request);
  }
  FakeManager manager_;
};

TEST_F(DataServerTest, ServesAnImage) {
  for (const char* method : {"GET", "HEAD"}) {
    const http::Response response =
        Get("/v1/images/debian/u-1/data", "", method);
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.content_type, "application/octet-stream");
    EXPECT_TRUE(response.file);
    EXPECT_EQ(response.file_size, 512u);
    ASSERT_EQ(response.headers.size(), 2u);
    EXPECT_EQ(response.headers[0],
              std::pair(std::string("X-Bim-Sha512"), std::string("ab12")));
    EXPECT_EQ(response.headers[1],
              std::pair(std::string("ETag"), std::string("\"sha512:ab12\"")));
  }
  EXPECT_EQ(manager_.name, "debian");
  EXPECT_EQ(manager_.uuid, "u-1");
  EXPECT_EQ(manager_.disk, "");
}

TEST_F(DataServerTest, TakesADisk) {
  EXPECT_EQ(Get("/v1/images/a/b/data", "disk=%2Fdisks%2Fx%20y+z").status, 200);
  EXPECT_EQ(manager_.disk, "/disks/x y+z");
  for (const char* query : {"disk=", "disk", "disk=%2", "disk=%zz", "disk=%00",
                            "disc=a", "x", "disk=a&disk=b", "disk=a&x=1"}) {
    const http::Response response = Get("/v1/images/a/b/data", query);
    EXPECT_EQ(response.status, 400) << query;
    EXPECT_TRUE(response.body.ends_with("\n"));
    EXPECT_FALSE(response.file);
  }
  EXPECT_EQ(Get("/v1/images/a/b/data", "&disk=a&").status, 200);
}

TEST_F(DataServerTest, MapsErrors) {
  const std::pair<base::Code, int> codes[] = {
      {base::Code::kNotFound, 404},
      {base::Code::kInvalidArgument, 400},
      {base::Code::kFailedPrecondition, 409},
      {base::Code::kUnavailable, 503},
      {base::Code::kPermissionDenied, 403},
      {base::Code::kInternal, 500},
      {base::Code::kResourceExhausted, 503},
      {base::Code::kDataLoss, 500}};
  for (const auto& [code, status] : codes) {
    manager_.fail = base::Status(code, "why");
    const http::Response response = Get("/v1/images/a/b/data");
    EXPECT_EQ(response.status, status);
    EXPECT_EQ(response.body, "why\n");
    EXPECT_TRUE(response.content_type.starts_with("text/plain"));
    EXPECT_FALSE(response.file);
  }
}

TEST_F(DataServerTest, OtherPathsAndMethods) {
  EXPECT_EQ(Get("/healthz").status, 200);
  EXPECT_EQ(Get("/healthz").body, "ok\n");
  for (const char* path :
       {"/", "/v1/images/", "/v1/images/data", "/v1/images//data",
        "/v1/images/a/data", "/v1/images/a//data", "/v1/images//b/data",
        "/v1/images/a/b/c/data", "/v1/images/a/b/data/", "/v1/images/a/b",
        "/v1/images", "/v2/images/a/b/data", "/healthz/"}) {
    EXPECT_EQ(Get(path).status, 404) << path;
  }
  EXPECT_EQ(Get("/healthz", "", "POST").status, 405);
}

}  // namespace
}  // namespace bim::api
