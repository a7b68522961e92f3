#include "pkg/base/status.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace bim::base {

std::string_view CodeName(Code code) {
  switch (code) {
    case Code::kOk:
      return "OK";
    case Code::kCancelled:
      return "CANCELLED";
    case Code::kUnknown:
      return "UNKNOWN";
    case Code::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case Code::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case Code::kNotFound:
      return "NOT_FOUND";
    case Code::kAlreadyExists:
      return "ALREADY_EXISTS";
    case Code::kPermissionDenied:
      return "PERMISSION_DENIED";
    case Code::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case Code::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case Code::kAborted:
      return "ABORTED";
    case Code::kOutOfRange:
      return "OUT_OF_RANGE";
    case Code::kUnimplemented:
      return "UNIMPLEMENTED";
    case Code::kInternal:
      return "INTERNAL";
    case Code::kUnavailable:
      return "UNAVAILABLE";
    case Code::kDataLoss:
      return "DATA_LOSS";
    case Code::kUnauthenticated:
      return "UNAUTHENTICATED";
  }
  return "UNKNOWN";
}

std::string Status::ToString() const {
  if (ok()) return "OK";
  return std::string(CodeName(code_)) + ": " + message_;
}

Status Status::WithContext(std::string_view context) const {
  if (ok()) return *this;
  return Status(code_, std::string(context) + ": " + message_);
}

#define BIM_DEFINE_ERROR_(name)                       \
  Status name##Error(std::string message) {           \
    return Status(Code::k##name, std::move(message)); \
  }
BIM_DEFINE_ERROR_(Cancelled)
BIM_DEFINE_ERROR_(InvalidArgument)
BIM_DEFINE_ERROR_(DeadlineExceeded)
BIM_DEFINE_ERROR_(NotFound)
BIM_DEFINE_ERROR_(AlreadyExists)
BIM_DEFINE_ERROR_(PermissionDenied)
BIM_DEFINE_ERROR_(ResourceExhausted)
BIM_DEFINE_ERROR_(FailedPrecondition)
BIM_DEFINE_ERROR_(Aborted)
BIM_DEFINE_ERROR_(OutOfRange)
BIM_DEFINE_ERROR_(Unimplemented)
BIM_DEFINE_ERROR_(Internal)
BIM_DEFINE_ERROR_(Unavailable)
BIM_DEFINE_ERROR_(DataLoss)
#undef BIM_DEFINE_ERROR_

namespace {

Code CodeOfErrno(int error_number) {
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
      return Code::kNotFound;
    case EEXIST:
      return Code::kAlreadyExists;
    case EACCES:
    case EPERM:
    case ELOOP:
    case EXDEV:
      return Code::kPermissionDenied;
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EFBIG:
      return Code::kResourceExhausted;
    case EROFS:
    case EIO:
    case ENODEV:
    case ENXIO:
    case ESTALE:
      return Code::kUnavailable;
    case EINTR:
    case ECANCELED:
      return Code::kCancelled;
    default:
      return Code::kInternal;
  }
}

}  // namespace

Status ErrnoError(int error_number, std::string_view what) {
  char buffer[128];
  // GNU strerror_r: returns the text, thread-safe.
  const char* text = strerror_r(error_number, buffer, sizeof(buffer));
  return Status(CodeOfErrno(error_number), std::string(what) + ": " + text);
}

void CheckFailed(const char* file, int line, const char* what) {
  std::fprintf(stderr, "%s:%d: invariant broken: %s\n", file, line, what);
  std::abort();
}

}  // namespace bim::base
