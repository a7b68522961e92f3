#include "pkg/http/answer.h"

#include <time.h>

#include <algorithm>
#include <array>
#include <boost/beast/http/status.hpp>
#include <limits>
#include <optional>

#include "pkg/http/ascii.h"
#include "pkg/http/range.h"

namespace bim::http {
namespace {

std::string HttpDate() {
  const time_t now = time(nullptr);
  tm utc{};
  gmtime_r(&now, &utc);
  char text[64];
  const size_t size =
      strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &utc);
  return std::string(text, size);
}

std::string OneLine(std::string text) {
  std::ranges::replace_if(
      text, [](char c) { return c == '\r' || c == '\n' || c == '\0'; }, ' ');
  return text;
}

bool IsServersOwn(std::string_view name) {
  constexpr std::array<std::string_view, 5> kOwn = {
      "Content-Length", "Content-Type", "Connection", "Transfer-Encoding",
      "Date"};
  return std::ranges::any_of(kOwn, [&](std::string_view own) {
    return EqualsIgnoringCase(own, name);
  });
}

// Empty when the handler gave no such header.
std::string_view HeaderOf(const Response& response, std::string_view name) {
  for (const auto& [key, value] : response.headers) {
    if (EqualsIgnoringCase(key, name)) return value;
  }
  return {};
}

// RFC 9110 13.1.5: an entity tag is compared strongly, a date exactly.
bool IfRangeHolds(const Response& response, std::string_view if_range) {
  if (if_range.empty()) return true;
  if (if_range.starts_with("W/")) return false;
  const std::string_view name =
      if_range.starts_with('"') ? "ETag" : "Last-Modified";
  return HeaderOf(response, name) == if_range;
}

constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();

// How many bytes the parts have together; nullopt when no file has them.
std::optional<uint64_t> LengthOf(const std::vector<FilePart>& parts) {
  uint64_t length = 0;
  for (const FilePart& part : parts) {
    if (part.begin > part.end || part.end > kMost) return std::nullopt;
    length += part.end - part.begin;
    if (length > kMost) return std::nullopt;
  }
  return length;
}

// Chooses which part of the whole file is sent; the headers that say so.
std::string ChoosePart(Response& response, const Asked& asked) {
  const uint64_t size = response.file_size;
  std::string lines = "Accept-Ranges: bytes\r\n";
  ByteRange range;
  if (response.status == 200 && !asked.head_only &&
      IfRangeHolds(response, asked.if_range))
    range = SelectRange(asked.range, size);
  switch (range.kind) {
    case ByteRange::Kind::kWhole:
      response.parts = {{0, size}};
      break;
    case ByteRange::Kind::kPart:
      response.status = 206;
      response.parts = {{range.begin, range.end}};
      lines += "Content-Range: bytes " + std::to_string(range.begin) + "-" +
               std::to_string(range.end - 1) + "/" + std::to_string(size) +
               "\r\n";
      break;
    case ByteRange::Kind::kUnsatisfiable:
      response.status = 416;
      lines += "Content-Range: bytes */" + std::to_string(size) + "\r\n";
      break;
  }
  return lines;
}

// Why `response` cannot be sent as it is; empty when it can.
std::string_view Fault(const Response& response) {
  if (response.status < 200 || response.status > 599)
    return "the handler gave no valid status";
  if (response.maker != nullptr) return "";
  if (!response.parts.empty() && !response.file)
    return "the handler gave parts of no file";
  if (!LengthOf(response.parts) || response.file_size > kMost)
    return "the handler gave parts that no file has";
  return "";
}

}  // namespace

Response PlainAnswer(int status, std::string text) {
  Response response;
  response.status = status;
  response.body = std::move(text) + "\n";
  return response;
}

Answer Compose(Response& response, const Asked& asked) {
  if (const std::string_view fault = Fault(response); !fault.empty()) {
    Response instead = PlainAnswer(500, std::string(fault));
    return Compose(instead, asked);
  }
  std::string lines;
  if (response.maker != nullptr) {
    response.body.clear();
    response.parts.clear();
  } else if (response.file && response.parts.empty()) {
    response.body.clear();
    lines = ChoosePart(response, asked);
  }
  const bool without_body = response.status == 204 || response.status == 304;

  Answer answer;
  answer.keep_alive = asked.keep_alive;
  if (!without_body) {
    lines += "Content-Type: " + OneLine(response.content_type) + "\r\n";
    if (response.maker == nullptr) {
      const uint64_t length =
          response.body.size() + LengthOf(response.parts).value_or(0);
      lines += "Content-Length: " + std::to_string(length) + "\r\n";
    } else if (asked.old_client) {
      answer.keep_alive = false;  // the close is the end of the body
    } else {
      lines += "Transfer-Encoding: chunked\r\n";
      answer.chunked = true;
    }
  }
  for (const auto& [name, value] : response.headers) {
    if (!IsServersOwn(name))
      lines += OneLine(name) + ": " + OneLine(value) + "\r\n";
  }
  if (!answer.keep_alive) {
    lines += "Connection: close\r\n";
  } else if (asked.old_client) {
    lines += "Connection: keep-alive\r\n";
  }

  const auto reason = boost::beast::http::obsolete_reason(
      static_cast<boost::beast::http::status>(response.status));
  answer.text = "HTTP/1.1 " + std::to_string(response.status) + " ";
  answer.text.append(reason.data(), reason.size());
  answer.text += "\r\nDate: " + HttpDate() + "\r\n" + lines + "\r\n";
  answer.head_bytes = answer.text.size();
  if (asked.head_only || without_body) return answer;

  answer.text += response.body;
  answer.file = std::move(response.file);
  answer.parts = std::move(response.parts);
  answer.maker = std::move(response.maker);
  answer.rate = std::move(response.rate);
  answer.check = std::move(response.check);
  return answer;
}

}  // namespace bim::http
