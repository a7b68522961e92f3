#include "pkg/api/grpc_status.h"

#include <gtest/gtest.h>

#include <string>

namespace bim::api {
namespace {

TEST(GrpcStatus, EveryCodeThereAndBack) {
  EXPECT_TRUE(ToGrpc(base::OkStatus()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
  for (int code = 1; code <= 16; ++code) {
    const base::Status status(static_cast<base::Code>(code), "why");
    EXPECT_EQ(ToGrpc(status).error_code(), code);
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  }
}

TEST(GrpcStatus, PutsABrokenConnectionIntoWords) {
  const base::Status status =
      FromGrpc({grpc::StatusCode::UNAVAILABLE, "Socket closed"});
  EXPECT_EQ(status, base::UnavailableError(
                        "the connection to the daemon broke: Socket closed"));
}

TEST(GrpcStatus, CutsLongMessagesBetweenCharacters) {
  std::string text = "x";
  for (int i = 0; i < 2000; ++i) text += "\xC3\xA4";
  const std::string message = ToGrpc(base::InternalError(text)).error_message();
  EXPECT_LE(message.size(), 2048u);
  EXPECT_TRUE(message.ends_with("\xC3\xA4..."));
  EXPECT_EQ(ValidUtf8(message), message);
}

TEST(ValidUtf8, KeepsWhatIsValidAndReplacesTheRest) {
  const std::string valid = "a\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80";
  EXPECT_EQ(ValidUtf8(valid), valid);
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(ValidUtf8("\xff"), r);
  EXPECT_EQ(ValidUtf8("\xC3"), r);
  EXPECT_EQ(ValidUtf8("\xC0\x80"), r + r);
  EXPECT_EQ(ValidUtf8("\xE0\x80\x80"), r + r + r);
  EXPECT_EQ(ValidUtf8("\xED\xA0\x80z"), r + r + r + "z");
  EXPECT_EQ(ValidUtf8("\xF4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(ValidUtf8("\xE2\x82"), r + r);
}

}  // namespace
}  // namespace bim::api
