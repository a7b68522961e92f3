#include "pkg/base/status.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>

namespace bim::base {
namespace {

TEST(StatusTest, OkIsTheDefault) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), Code::kOk);
  EXPECT_EQ(status.ToString(), "OK");
  EXPECT_EQ(status, OkStatus());
  EXPECT_EQ(status.WithContext("x"), OkStatus());
}

TEST(StatusTest, CodesHaveGrpcsNumbersAndNames) {
  const char* const names[] = {"OK",
                               "CANCELLED",
                               "UNKNOWN",
                               "INVALID_ARGUMENT",
                               "DEADLINE_EXCEEDED",
                               "NOT_FOUND",
                               "ALREADY_EXISTS",
                               "PERMISSION_DENIED",
                               "RESOURCE_EXHAUSTED",
                               "FAILED_PRECONDITION",
                               "ABORTED",
                               "OUT_OF_RANGE",
                               "UNIMPLEMENTED",
                               "INTERNAL",
                               "UNAVAILABLE",
                               "DATA_LOSS",
                               "UNAUTHENTICATED"};
  for (int i = 0; i < 17; ++i) {
    EXPECT_EQ(CodeName(static_cast<Code>(i)), names[i]);
  }
}

TEST(StatusTest, Makers) {
  EXPECT_EQ(CancelledError("m").code(), Code::kCancelled);
  EXPECT_EQ(InvalidArgumentError("m").code(), Code::kInvalidArgument);
  EXPECT_EQ(DeadlineExceededError("m").code(), Code::kDeadlineExceeded);
  EXPECT_EQ(NotFoundError("m").code(), Code::kNotFound);
  EXPECT_EQ(AlreadyExistsError("m").code(), Code::kAlreadyExists);
  EXPECT_EQ(PermissionDeniedError("m").code(), Code::kPermissionDenied);
  EXPECT_EQ(ResourceExhaustedError("m").code(), Code::kResourceExhausted);
  EXPECT_EQ(FailedPreconditionError("m").code(), Code::kFailedPrecondition);
  EXPECT_EQ(AbortedError("m").code(), Code::kAborted);
  EXPECT_EQ(OutOfRangeError("m").code(), Code::kOutOfRange);
  EXPECT_EQ(UnimplementedError("m").code(), Code::kUnimplemented);
  EXPECT_EQ(InternalError("m").code(), Code::kInternal);
  EXPECT_EQ(UnavailableError("m").code(), Code::kUnavailable);
  EXPECT_EQ(DataLossError("m").code(), Code::kDataLoss);
  EXPECT_EQ(NotFoundError("m").WithContext("c").ToString(), "NOT_FOUND: c: m");
}

TEST(StatusTest, EveryErrnoOfTheContract) {
  const std::pair<Code, std::set<int>> table[] = {
      {Code::kNotFound, {ENOENT, ENOTDIR}},
      {Code::kAlreadyExists, {EEXIST}},
      {Code::kPermissionDenied, {EACCES, EPERM, ELOOP, EXDEV}},
      {Code::kResourceExhausted,
       {ENOSPC, EDQUOT, EMFILE, ENFILE, ENOMEM, EFBIG}},
      {Code::kUnavailable, {EROFS, EIO, ENODEV, ENXIO, ESTALE}},
      {Code::kCancelled, {EINTR, ECANCELED}}};
  for (int error = 1; error < 134; ++error) {
    Code expected = Code::kInternal;
    for (const auto& [code, numbers] : table) {
      if (numbers.count(error) != 0) expected = code;
    }
    const Status status = ErrnoError(error, "cannot open /x");
    EXPECT_EQ(status.code(), expected) << error;
    EXPECT_TRUE(status.message().starts_with("cannot open /x: ")) << error;
  }
}

TEST(ResultTest, ValueOrFailure) {
  Result<std::unique_ptr<int>> value = std::make_unique<int>(7);
  ASSERT_TRUE(value.ok());
  EXPECT_TRUE(value.status().ok());
  EXPECT_EQ(**value, 7);
  EXPECT_EQ(*std::move(value).value(), 7);
  Result<std::string> failure = NotFoundError("m");
  EXPECT_FALSE(failure);
  EXPECT_EQ(failure.status(), NotFoundError("m"));
  Result<int> odd = OkStatus();
  EXPECT_FALSE(odd.ok()) << "never OK as an error";
  EXPECT_EQ(odd.status().code(), Code::kInternal);
}

Result<int> Half(int n) {
  if (n % 2 != 0) return InvalidArgumentError("odd");
  return n / 2;
}
Result<int> Quarter(int n) {
  BIM_ASSIGN_OR_RETURN(int half, Half(n));
  BIM_ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}
Status Both(Status a, Status b) {
  BIM_RETURN_IF_ERROR(a);
  BIM_RETURN_IF_ERROR(b);
  return OkStatus();
}

TEST(ResultTest, Macros) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Quarter(6).status().message(), "odd");
  EXPECT_EQ(Quarter(3).status().message(), "odd");
  EXPECT_TRUE(Both({}, {}).ok());
  EXPECT_EQ(Both({}, AbortedError("b")).message(), "b");
  EXPECT_EQ(Both(AbortedError("a"), AbortedError("b")).message(), "a");
}

TEST(CheckDeathTest, ABrokenInvariantAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(BIM_CHECK(1 + 1 == 3), "1 \\+ 1 == 3");
  BIM_CHECK(true);
}

}  // namespace
}  // namespace bim::base
