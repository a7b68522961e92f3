#include "pkg/api/grpc_status.h"

#include <cstddef>
#include <cstdint>

namespace bim::api {
namespace {

constexpr size_t kMaxMessage = 2048;

// The length of the valid UTF-8 sequence that `text` begins with, or 0.
size_t SequenceLength(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xF0 && first <= 0xF4   ? 4
                        : first >= 0xE0 && first < 0xF0  ? 3
                        : first >= 0xC2 && first <= 0xDF ? 2
                                                         : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const uint8_t second = byte(1);
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
      (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) {
    return 0;  // overlong, a surrogate, or beyond U+10FFFF
  }
  return length;
}

bool IsOfTheConnection(std::string_view message) {
  for (std::string_view start :
       {"Socket closed", "Connection reset by peer", "Broken pipe",
        "failed to connect to all addresses", "GOAWAY received",
        "keepalive watchdog timeout", "Stream removed", "Cancelling all calls",
        "recvmsg:", "sendmsg:", "Endpoint read failed",
        "connections to all backends failing"}) {
    if (message.starts_with(start)) return true;
  }
  return false;
}

}  // namespace

grpc::Status ToGrpc(const base::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message = ValidUtf8(status.message());
  if (message.size() > kMaxMessage) {
    size_t end = kMaxMessage - 3;
    while (end > 0 && (static_cast<uint8_t>(message[end]) & 0xC0) == 0x80) {
      --end;
    }
    message.resize(end);
    message += "...";
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message);
}

base::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return base::OkStatus();
  const int code = status.error_code();
  if (code == grpc::StatusCode::UNAVAILABLE &&
      IsOfTheConnection(status.error_message())) {
    return base::UnavailableError("the connection to the daemon broke: " +
                                  status.error_message());
  }
  if (code < 0 || code > static_cast<int>(base::Code::kUnauthenticated)) {
    return base::Status(base::Code::kUnknown, status.error_message());
  }
  return base::Status(static_cast<base::Code>(code), status.error_message());
}

std::string ValidUtf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  while (!text.empty()) {
    const size_t length = SequenceLength(text);
    if (length == 0) {
      valid += "\xEF\xBF\xBD";
      text.remove_prefix(1);
    } else {
      valid += text.substr(0, length);
      text.remove_prefix(length);
    }
  }
  return valid;
}

}  // namespace bim::api
