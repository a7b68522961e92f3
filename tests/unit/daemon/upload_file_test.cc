// The client's side of an upload against a server that the test plays.
#include "daemon/upload_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace bim::daemon {
namespace {

using std::chrono::milliseconds;

constexpr UploadOptions kFast{
    .max_tries = 3, .first_wait = milliseconds(1), .max_wait = milliseconds(1)};

http::PutResult Answer(
    int status, std::vector<std::pair<std::string, std::string>> fields = {},
    const std::string& body = "") {
  return {.status = status, .fields = std::move(fields), .body = body};
}

http::PutResult Broken(http::Failure failure = http::Failure::kTransient) {
  http::PutResult result;
  result.outcome.failure = failure;
  result.outcome.status = failure == http::Failure::kTransient
                              ? base::UnavailableError("connection reset")
                          : failure == http::Failure::kCancelled
                              ? base::CancelledError("stopped")
                              : base::FailedPreconditionError("no HTTP");
  return result;
}

// Takes an upload as the data port does; what it does wrong is scripted.
class FakePort {
 public:
  std::string taken;
  bool complete = false;
  std::optional<uint64_t> length;
  int heads = 0, patches = 0;
  // Bytes after which the n-th PATCH breaks; the last number counts on.
  std::vector<size_t> breaks;
  // Instead of the usual answers.
  std::function<std::optional<http::PutResult>(const http::PutRequest&)> answer;

  http::PutResult operator()(const http::PutRequest& request,
                             const http::BodyReader& body,
                             std::stop_token stop) {
    EXPECT_EQ(request.url, "http://h:1/v1/images/a/b/upload");
    if (stop.stop_requested()) return Broken(http::Failure::kCancelled);
    (request.method == "HEAD" ? heads : patches) += 1;
    if (answer) {
      if (auto scripted = answer(request)) return *scripted;
    }
    if (request.method == "HEAD") {
      auto head = Answer(200, {{"upload-offset", std::to_string(taken.size())},
                               {"upload-complete", complete ? "?1" : "?0"}});
      if (length)
        head.fields.emplace_back("upload-length", std::to_string(*length));
      return head;
    }
    EXPECT_EQ(request.method, "PATCH");
    EXPECT_EQ(request.headers[0],
              "Upload-Offset: " + std::to_string(taken.size()));
    EXPECT_TRUE(request.headers[1].starts_with("Upload-Length: "));
    length = std::stoull(request.headers[1].substr(15));
    EXPECT_EQ(request.content_length, *length - taken.size());
    size_t left = SIZE_MAX;
    if (!breaks.empty()) {
      left = breaks[std::min<size_t>(patches, breaks.size()) - 1];
    }
    std::vector<std::byte> buffer(100);
    while (true) {
      const auto count = body(std::span(buffer).first(
          std::min<size_t>(buffer.size(), std::max<size_t>(left, 1))));
      if (!count.ok()) return Broken(http::Failure::kRefused);
      if (*count == 0) break;
      if (left == 0) return Broken();
      left -= *count;
      taken.append(reinterpret_cast<const char*>(buffer.data()), *count);
    }
    complete = true;
    return Answer(201, {}, "ready\n");
  }
};

class UploadFileTest : public testing::Test {
 protected:
  UploadFileTest() {
    char name[] = "/tmp/bim-upload-XXXXXX";
    close(mkstemp(name));
    file_ = name;
    for (int i = 0; i < 5'120; ++i) content_ += static_cast<char>(i * 7);
    std::ofstream(file_) << content_;
  }
  ~UploadFileTest() override { unlink(file_.c_str()); }

  base::Result<UploadResult> Upload(std::stop_token stop = {}) {
    return UploadFile(
        "http://h:1/v1/images/a/b/upload", file_,
        [this](uint64_t done, uint64_t total) {
          EXPECT_LE(done, total);
          progress_ = done;
        },
        stop, kFast, std::ref(port_));
  }
  // The n-th request of a method answered with `status`.
  void Script(const std::string& method, http::PutResult result,
              int times = 1'000) {
    port_.answer = [=, left = times](const http::PutRequest& request) mutable
        -> std::optional<http::PutResult> {
      if (request.method != method || left-- <= 0) return std::nullopt;
      return result;
    };
  }

  std::string file_, content_;
  FakePort port_;
  uint64_t progress_ = 0;
};

TEST_F(UploadFileTest, SendsAFile) {
  const auto result = Upload();
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  EXPECT_EQ(port_.taken, content_);
  EXPECT_EQ(result->size, 5'120u);
  EXPECT_EQ(result->sent, 5'120u);
  EXPECT_FALSE(result->was_ready);
  EXPECT_EQ(progress_, 5'120u);
}

TEST_F(UploadFileTest, GoesOnWhereAnEarlierOneWas) {
  port_.taken = content_.substr(0, 2'000);
  port_.length = 5'120;
  const auto result = Upload();
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(port_.taken, content_);
  EXPECT_EQ(result->sent, 3'120u);
}

TEST_F(UploadFileTest, GoesOnAsLongAsThereIsProgress) {
  port_.breaks = {100};  // each time: 52 requests, far more than max_tries
  const auto result = Upload();
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  EXPECT_EQ(port_.taken, content_);
  EXPECT_GT(port_.patches, 40);
}

TEST_F(UploadFileTest, GivesUpWithoutProgress) {
  port_.breaks = {1'000, 0};
  const base::Status status = Upload().status();
  EXPECT_EQ(status.code(), base::Code::kUnavailable);
  EXPECT_NE(status.message().find("3 tries"), std::string::npos);
  EXPECT_EQ(port_.taken.size(), 1'000u);
  EXPECT_EQ(port_.patches, 4);
}

TEST_F(UploadFileTest, AReadyImageTakesNothing) {
  port_.complete = true;
  const auto result = Upload();
  ASSERT_TRUE(result.ok());
  EXPECT_TRUE(result->was_ready);
  EXPECT_EQ(port_.patches, 0);
}

TEST_F(UploadFileTest, TheAnswerMayBeLost) {
  // All came and was published; then the connection broke.
  port_.answer =
      [this](
          const http::PutRequest& request) -> std::optional<http::PutResult> {
    if (request.method != "PATCH") return std::nullopt;
    port_.taken = content_;
    port_.complete = true;
    return Broken();
  };
  const auto result = Upload();
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(port_.heads, 2);
}

TEST_F(UploadFileTest, AnotherFilesUploadIsLeftAlone) {
  port_.taken = content_.substr(0, 100);
  port_.length = 1'024;
  const base::Status status = Upload().status();
  EXPECT_EQ(status.code(), base::Code::kFailedPrecondition);
  EXPECT_NE(status.message().find("expected 1024 bytes, found 5120"),
            std::string::npos)
      << status.message();
  EXPECT_EQ(port_.patches, 0);
}

TEST_F(UploadFileTest, MapsAnswers) {
  const std::pair<int, base::Code> codes[] = {
      {400, base::Code::kInvalidArgument},    {404, base::Code::kNotFound},
      {409, base::Code::kFailedPrecondition}, {422, base::Code::kDataLoss},
      {507, base::Code::kResourceExhausted},  {418, base::Code::kInternal}};
  for (const auto& [status, code] : codes) {
    port_.patches = 0;
    Script("PATCH", Answer(status, {}, "why\nmore\n"));
    EXPECT_EQ(Upload().status(), base::Status(code, "why"));
    EXPECT_EQ(port_.patches, 1) << status;
  }
  for (const int status : {204, 423, 500, 503}) {
    port_.patches = 0;
    Script("PATCH", Answer(status));
    EXPECT_FALSE(Upload().ok());
    EXPECT_EQ(port_.patches, 3) << status;
    Script("PATCH", Answer(status), 2);
    port_.taken.clear();
    port_.complete = false;
    EXPECT_TRUE(Upload().ok()) << status;
    port_.taken.clear();
    port_.complete = false;
  }
  // Somebody else went on meanwhile.
  Script("PATCH", Answer(409, {{"upload-offset", "7"}}), 1);
  EXPECT_TRUE(Upload().ok());
}

TEST_F(UploadFileTest, MapsAnswersToTheQuestion) {
  Script("HEAD", Answer(404));
  EXPECT_EQ(Upload().status().code(), base::Code::kNotFound);
  Script("HEAD", Answer(409));
  EXPECT_EQ(Upload().status().code(), base::Code::kFailedPrecondition);
  Script("HEAD", Answer(200));
  EXPECT_EQ(Upload().status().code(), base::Code::kInternal);
  Script("HEAD", Broken(http::Failure::kPermanent));
  EXPECT_EQ(Upload().status().code(), base::Code::kFailedPrecondition);
  Script("HEAD", Broken(), 2);
  EXPECT_TRUE(Upload().ok());
}

TEST_F(UploadFileTest, AFileThatShrinksIsNoImage) {
  port_.answer =
      [this](
          const http::PutRequest& request) -> std::optional<http::PutResult> {
    if (request.method == "PATCH") {
      EXPECT_EQ(truncate(file_.c_str(), 1'000), 0);
    }
    return std::nullopt;
  };
  const base::Status status = Upload().status();
  EXPECT_EQ(status.code(), base::Code::kInternal);
  EXPECT_NE(status.message().find("became shorter"), std::string::npos);
}

TEST_F(UploadFileTest, Stops) {
  std::stop_source source;
  source.request_stop();
  EXPECT_EQ(Upload(source.get_token()).status().code(), base::Code::kCancelled);
}

TEST_F(UploadFileTest, TakesFilesOnly) {
  const auto upload = [&](const std::string& path) {
    return UploadFile(
               "http://h:1/v1/images/a/b/upload", path,
               [](uint64_t, uint64_t) {}, {}, kFast, std::ref(port_))
        .status()
        .code();
  };
  EXPECT_EQ(upload("/tmp"), base::Code::kInvalidArgument);
  EXPECT_EQ(upload("/dev/null"), base::Code::kInvalidArgument);
  EXPECT_EQ(upload("/nonexistent/x"), base::Code::kInternal);
  EXPECT_EQ(port_.heads, 0);
}

}  // namespace
}  // namespace bim::daemon
