// What goes over the wire for a Response: its head as text, and which bytes
// follow. Pure, except that it moves the file's descriptor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/http/server.h"

namespace bim::http {

// What an answer depends on of its request.
struct Asked {
  bool head_only = false;
  bool old_client = false;  // HTTP/1.0
  bool keep_alive = false;
  std::string range;
  std::string if_range;
};

struct Answer {
  std::string text;       // the head, and a body from memory
  size_t head_bytes = 0;  // so much of `text` is the head
  base::UniqueFd file;
  std::vector<FilePart> parts;  // of `file`, behind `text`
  std::unique_ptr<BodyMaker> maker;
  bool chunked = false;  // what the maker makes
  bool keep_alive = false;
  std::shared_ptr<exec::RateLimiter> rate;
  std::function<base::Status()> check;
};

// Takes what is to be sent out of `response`; what stays in it is not. A
// response that makes no sense becomes a 500.
Answer Compose(Response& response, const Asked& asked);

Response PlainAnswer(int status, std::string text);

}  // namespace bim::http
