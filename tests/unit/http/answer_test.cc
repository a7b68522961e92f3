#include "pkg/http/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

namespace bim::http {
namespace {

using testing::HasSubstr;
using testing::Not;

class NoPieces : public BodyMaker {
 public:
  base::Result<std::string> Next() override { return std::string(); }
};

Response FileOfTen() {
  Response response;
  response.file = base::UniqueFd(memfd_create("ten", MFD_CLOEXEC));
  response.file_size = 10;
  return response;
}

std::vector<std::pair<uint64_t, uint64_t>> PartsOf(const Answer& answer) {
  std::vector<std::pair<uint64_t, uint64_t>> parts;
  for (const FilePart& part : answer.parts)
    parts.emplace_back(part.begin, part.end);
  return parts;
}

using Parts = std::vector<std::pair<uint64_t, uint64_t>>;

TEST(Compose, TextFollowsTheHead) {
  Response response;
  response.body = "hello";
  const Answer answer = Compose(response, {.keep_alive = true});
  EXPECT_TRUE(answer.keep_alive);
  EXPECT_EQ(answer.text.substr(answer.head_bytes), "hello");
  EXPECT_THAT(answer.text, HasSubstr("Content-Length: 5\r\n"));
  EXPECT_THAT(answer.text, Not(HasSubstr("Connection")));
  EXPECT_TRUE(answer.parts.empty());
}

TEST(Compose, RangesAreOfWholeFilesOnly) {
  Response whole = FileOfTen();
  EXPECT_EQ(PartsOf(Compose(whole, {})), (Parts{{0, 10}}));
  Response part = FileOfTen();
  const Answer answer = Compose(part, {.range = "bytes=2-4"});
  EXPECT_EQ(PartsOf(answer), (Parts{{2, 5}}));
  EXPECT_THAT(answer.text, HasSubstr("Content-Range: bytes 2-4/10\r\n"));
  Response beyond = FileOfTen();
  EXPECT_EQ(PartsOf(Compose(beyond, {.range = "bytes=10-"})), Parts());
  Response parts = FileOfTen();
  parts.parts = {{1, 2}, {8, 9}};
  EXPECT_EQ(PartsOf(Compose(parts, {.range = "bytes=2-4"})),
            (Parts{{1, 2}, {8, 9}}));
}

TEST(Compose, WhatIsNotSentStays) {
  for (const int status : {200, 204, 304}) {
    Response response;
    response.status = status;
    response.maker = std::make_unique<NoPieces>();
    const Answer answer = Compose(response, {.head_only = status == 200});
    EXPECT_EQ(answer.maker, nullptr);
    EXPECT_NE(response.maker, nullptr);
    EXPECT_EQ(answer.text.find("chunked") != std::string::npos, status == 200);
  }
}

TEST(Compose, MadeBodyOfAnOldClientEndsWithTheConnection) {
  for (const bool old : {false, true}) {
    Response response;
    response.maker = std::make_unique<NoPieces>();
    const Answer answer =
        Compose(response, {.old_client = old, .keep_alive = true});
    EXPECT_NE(answer.maker, nullptr);
    EXPECT_EQ(answer.chunked, !old);
    EXPECT_EQ(answer.keep_alive, !old);
  }
}

TEST(Compose, NonsenseIsA500) {
  Response status;
  status.status = 199;
  Response backward = FileOfTen();
  backward.parts = {{2, 1}};
  Response nowhere;
  nowhere.parts = {{0, 1}};
  Response huge = FileOfTen();
  huge.file_size = ~0ull;
  for (Response* response : {&status, &backward, &nowhere, &huge}) {
    EXPECT_THAT(Compose(*response, {}).text,
                testing::StartsWith("HTTP/1.1 500 "));
  }
}

TEST(Field, OfARequest) {
  Request request;
  request.fields = {{"a", "1"}, {"b", "2"}, {"b", ""}};
  EXPECT_EQ(request.Field("a"), "1");
  EXPECT_EQ(request.Field("b"), "");
  EXPECT_EQ(request.Field("c"), "");
}

}  // namespace
}  // namespace bim::http
