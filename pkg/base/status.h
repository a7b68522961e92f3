// Status and Result<T>: how every function of this project reports failure.
//
// A Status is a code (gRPC's names and meanings, so that the faces map them one
// to one) and a message for a person: what was expected, what was found, what
// to do. No exception leaves a room; a broken invariant aborts (BIM_CHECK).
//
// Thread-safety: values, as safe as a std::string.
#pragma once

#include <cerrno>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace bim::base {

// Numbers equal grpc::StatusCode.
enum class Code {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

// "NOT_FOUND" and so on.
std::string_view CodeName(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // OK
  Status(Code code, std::string message)
      : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  // "NOT_FOUND: cannot find image ..." or "OK".
  std::string ToString() const;
  // The same failure, its message prefixed with "context: ".
  Status WithContext(std::string_view context) const;

  friend bool operator==(const Status&, const Status&) = default;

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

inline Status OkStatus() { return {}; }
Status CancelledError(std::string message);
Status InvalidArgumentError(std::string message);
Status DeadlineExceededError(std::string message);
Status NotFoundError(std::string message);
Status AlreadyExistsError(std::string message);
Status PermissionDeniedError(std::string message);
Status ResourceExhaustedError(std::string message);
Status FailedPreconditionError(std::string message);
Status AbortedError(std::string message);
Status OutOfRangeError(std::string message);
Status UnimplementedError(std::string message);
Status InternalError(std::string message);
Status UnavailableError(std::string message);
Status DataLossError(std::string message);

// The one place where an errno becomes a Status: ENOENT is NOT_FOUND, EEXIST
// ALREADY_EXISTS, EACCES/EPERM PERMISSION_DENIED, ENOSPC/EDQUOT/EMFILE/ENFILE/
// ENOMEM/EFBIG RESOURCE_EXHAUSTED, ELOOP/EXDEV PERMISSION_DENIED (openat2
// refused to leave the disk or to follow a link), EROFS/EIO/ENODEV/ENXIO/
// ESTALE UNAVAILABLE, EINTR/ECANCELED CANCELLED, the rest
// INTERNAL. `what` says what was tried, on which file.
Status ErrnoError(int error_number, std::string_view what);

// A value or a failure. Never holds an OK Status as its error.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit on purpose
  Result(Status status)                          // NOLINT: implicit on purpose
      : value_(tl::unexpected<Status>(status.ok()
                                          ? InternalError("OK used as an error")
                                          : std::move(status))) {}

  bool ok() const { return value_.has_value(); }
  explicit operator bool() const { return ok(); }
  // OK when there is a value.
  Status status() const { return ok() ? Status() : value_.error(); }
  // Precondition: ok().
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return *std::move(value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return *std::move(value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  tl::expected<T, Status> value_;
};

[[noreturn]] void CheckFailed(const char* file, int line, const char* what);

}  // namespace bim::base

// Returns the failure of an expression that yields a Status.
#define BIM_RETURN_IF_ERROR(expr)                                      \
  do {                                                                 \
    if (::bim::base::Status bim_status_ = (expr); !bim_status_.ok()) { \
      return bim_status_;                                              \
    }                                                                  \
  } while (false)

#define BIM_CONCAT_INNER_(a, b) a##b
#define BIM_CONCAT_(a, b) BIM_CONCAT_INNER_(a, b)
#define BIM_ASSIGN_OR_RETURN_(result, lhs, expr) \
  auto result = (expr);                          \
  if (!result.ok()) return result.status();      \
  lhs = *std::move(result)
// `BIM_ASSIGN_OR_RETURN(auto x, F());` returns the failure of F, or names its
// value.
#define BIM_ASSIGN_OR_RETURN(lhs, expr) \
  BIM_ASSIGN_OR_RETURN_(BIM_CONCAT_(bim_result_, __LINE__), lhs, expr)

// An invariant of our own code: aborts with its text when broken, in every
// build type.
#define BIM_CHECK(condition)                                    \
  do {                                                          \
    if (!(condition))                                           \
      ::bim::base::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)
