#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pkg/api/data_server.h"
#include "tests/unit/api/fake_manager.h"

namespace bim::api {
namespace {

using Fields = std::vector<std::pair<std::string, std::string>>;

std::string Header(const http::Response& response, std::string_view name) {
  for (const auto& [field, value] : response.headers) {
    if (field == name) return value;
  }
  return "(none)";
}

class DataUploadTest : public testing::Test {
 protected:
  // Without a body: what the handler says at once.
  http::Response Begin(const std::string& method, Fields fields = {},
                       std::optional<uint64_t> length = std::nullopt,
                       const std::string& query = "") {
    return DataHandler(manager_)({.method = method,
                                  .path = "/v1/images/a/b/upload",
                                  .query = query,
                                  .fields = std::move(fields),
                                  .content_length = length});
  }
  // As the server does it.
  http::Response Send(const std::string& method, const std::string& body,
                      Fields fields = {}, bool chunked = false) {
    http::Response response =
        Begin(method, std::move(fields),
              chunked ? std::nullopt : std::optional<uint64_t>(body.size()));
    if (response.taker == nullptr) return response;
    base::Status status;
    for (size_t at = 0; at < body.size() && status.ok(); at += 1'000) {
      const std::string piece = body.substr(at, 1'000);
      status = response.taker->OnData(std::as_bytes(std::span(piece)));
    }
    return response.taker->Finish(status);
  }

  FakeManager manager_;
};

TEST_F(DataUploadTest, TellsWhereToGoOn) {
  http::Response response = Begin("HEAD");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(Header(response, "Upload-Offset"), "0");
  EXPECT_EQ(Header(response, "Upload-Length"), "(none)");
  EXPECT_EQ(Header(response, "Upload-Complete"), "?0");
  EXPECT_EQ(manager_.name, "a");
  EXPECT_EQ(manager_.uuid, "b");
  manager_.upload = {.offset = 4096, .size = 4096, .done = true};
  response = Begin("HEAD");
  EXPECT_EQ(Header(response, "Upload-Offset"), "4096");
  EXPECT_EQ(Header(response, "Upload-Length"), "4096");
  EXPECT_EQ(Header(response, "Upload-Complete"), "?1");
  manager_.fail = base::FailedPreconditionError("the source is no upload");
  EXPECT_EQ(Begin("HEAD").status, 409);
  manager_.fail = base::NotFoundError("cannot find image");
  EXPECT_EQ(Begin("HEAD").status, 404);
}

TEST_F(DataUploadTest, TakesAWholeFile) {
  const std::string body(5'120, 'x');
  http::Response response = Send("PUT", body);
  EXPECT_EQ(response.status, 201);
  EXPECT_EQ(response.body, "image 'a' with uuid 'b' is ready\n");
  EXPECT_EQ(manager_.uploaded, body);
  EXPECT_EQ(manager_.upload.size, 5'120u);
  EXPECT_FALSE(manager_.complete);

  response = Send("PUT", body, {}, /*chunked=*/true);
  EXPECT_EQ(response.status, 201);
  EXPECT_EQ(manager_.upload.size, std::nullopt);
  EXPECT_TRUE(manager_.complete);
  EXPECT_EQ(manager_.uploads, 0);
}

TEST_F(DataUploadTest, TakesParts) {
  const std::string file = std::string(2'000, 'a') + std::string(3'120, 'b');
  http::Response response = Send("PUT", file.substr(0, 2'000),
                                 {{"content-range", "bytes 0-1999/5120"}});
  EXPECT_EQ(response.status, 204);
  EXPECT_EQ(Header(response, "Upload-Offset"), "2000");
  EXPECT_EQ(Header(response, "Upload-Length"), "5120");
  EXPECT_EQ(response.body, "");
  response = Send("PUT", file.substr(2'000, 1'000),
                  {{"content-range", "bytes 2000-2999/*"}});
  EXPECT_EQ(response.status, 204);
  response =
      Send("PATCH", file.substr(3'000, 120), {{"upload-offset", "3000"}});
  EXPECT_EQ(response.status, 204);
  EXPECT_EQ(Header(response, "Upload-Offset"), "3120");
  response = Send("PATCH", file.substr(3'120),
                  {{"upload-offset", "3120"}, {"upload-length", "5120"}});
  EXPECT_EQ(response.status, 201);
  EXPECT_EQ(manager_.uploaded, file);
  EXPECT_FALSE(manager_.complete);
}

TEST_F(DataUploadTest, AChunkedPartMustBeAsLongAsItSays) {
  EXPECT_EQ(Send("PUT", std::string(100, 'a'),
                 {{"content-range", "bytes 0-99/512"}}, true)
                .status,
            204);
  EXPECT_EQ(Send("PUT", std::string(99, 'a'),
                 {{"content-range", "bytes 0-99/512"}}, true)
                .status,
            400);
  EXPECT_EQ(Send("PUT", std::string(101, 'a'),
                 {{"content-range", "bytes 0-99/512"}}, true)
                .status,
            400);
  EXPECT_EQ(manager_.uploads, 0);
}

TEST_F(DataUploadTest, RefusesWhatItDoesNotUnderstand) {
  for (const Fields& fields :
       {Fields{{"content-range", "bytes 0-9"}},
        Fields{{"content-range", "bytes 9-0/10"}},
        Fields{{"content-range", "bytes 0-8/10"}},  // Content-Length is 10
        Fields{{"content-range", "bytes */10"}},
        Fields{{"content-range", "bytes 0-9/10"},
               {"content-range", "bytes 0-9/10"}}}) {
    const http::Response response = Send("PUT", std::string(10, 'x'), fields);
    EXPECT_EQ(response.status, 400) << fields[0].second;
    EXPECT_FALSE(response.body.empty());
  }
  for (const Fields& fields :
       {Fields{}, Fields{{"upload-offset", "x"}},
        Fields{{"upload-offset", "-1"}},
        Fields{{"upload-offset", "0"}, {"upload-offset", "0"}},
        Fields{{"upload-offset", "0"}, {"upload-length", "many"}}}) {
    EXPECT_EQ(Send("PATCH", "x", fields).status, 400);
  }
  EXPECT_EQ(Begin("PUT", {}, 10, "disk=x").status, 400);
  EXPECT_EQ(Begin("HEAD", {}, std::nullopt, "x=1").status, 400);
}

TEST_F(DataUploadTest, AWrongOffsetIsToldTheRightOne) {
  manager_.upload = {.offset = 1'024, .size = 4'096};
  const http::Response response =
      Send("PATCH", "x", {{"upload-offset", "2048"}});
  EXPECT_EQ(response.status, 409);
  EXPECT_EQ(Header(response, "Upload-Offset"), "1024");
  EXPECT_EQ(Header(response, "Upload-Length"), "4096");
}

TEST_F(DataUploadTest, MapsRefusals) {
  const std::pair<base::Code, int> codes[] = {
      {base::Code::kAborted, 423},
      {base::Code::kInvalidArgument, 400},
      {base::Code::kNotFound, 404},
      {base::Code::kAlreadyExists, 409},
      {base::Code::kFailedPrecondition, 409},
      {base::Code::kResourceExhausted, 507},
      {base::Code::kUnavailable, 503},
      {base::Code::kInternal, 500}};
  for (const auto& [code, status] : codes) {
    manager_.begin_fail = base::Status(code, "why");
    const http::Response response = Send("PUT", "x");
    EXPECT_EQ(response.status, status);
    EXPECT_EQ(response.body, "why\n");
    EXPECT_EQ(response.taker, nullptr);
    EXPECT_EQ(Header(response, "Upload-Offset"), "(none)");
  }
}

TEST_F(DataUploadTest, MapsWhatIsWrongWithTheBytes) {
  const std::pair<base::Code, int> codes[] = {
      {base::Code::kFailedPrecondition, 422}, {base::Code::kDataLoss, 422},
      {base::Code::kResourceExhausted, 507},  {base::Code::kOutOfRange, 400},
      {base::Code::kUnavailable, 503},        {base::Code::kInternal, 500}};
  for (const auto& [code, status] : codes) {
    manager_.append_fail = base::Status(code, "append");
    manager_.finish_fail = {};
    http::Response response = Send("PUT", "x");
    EXPECT_EQ(response.status, status);
    EXPECT_EQ(response.body, "append\n");
    manager_.append_fail = {};
    manager_.finish_fail = base::Status(code, "finish");
    response = Send("PUT", "x");
    EXPECT_EQ(response.status, status);
    EXPECT_EQ(response.body, "finish\n");
    EXPECT_EQ(manager_.uploads, 0);
  }
}

TEST_F(DataUploadTest, ABrokenConnectionKeepsWhatCame) {
  http::Response response = Begin("PUT", {}, 4'096);
  ASSERT_NE(response.taker, nullptr);
  const std::string piece(1'000, 'x');
  EXPECT_TRUE(response.taker->OnData(std::as_bytes(std::span(piece))).ok());
  EXPECT_EQ(manager_.uploads, 1);
  response.taker->Finish(base::UnavailableError("the connection broke"));
  EXPECT_EQ(manager_.uploads, 0);  // at once, not when the taker goes
  EXPECT_FALSE(manager_.upload.done);
  EXPECT_EQ(Header(Begin("HEAD"), "Upload-Offset"), "1000");
}

}  // namespace
}  // namespace bim::api
