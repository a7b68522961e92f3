#include "pkg/longhorn/multipart.h"

#include <algorithm>

#include "pkg/base/names.h"

namespace bim::longhorn {

using base::Result;
using base::Status;

namespace {

constexpr size_t kMaxHead = 8 * 1024;
constexpr size_t kMaxBoundary = 70;
constexpr size_t kMaxParts = 64;
constexpr size_t kMaxPadding = 256;

char Lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

bool SameWord(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char x, char y) { return Lower(x) == Lower(y); });
}

std::string_view Trim(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

Status Odd(const std::string& what) {
  return base::InvalidArgumentError("the body is no multipart/form-data: " +
                                    what);
}

}  // namespace

std::string HeaderParameter(std::string_view field, std::string_view name) {
  size_t at = field.find(';');
  while (at != std::string_view::npos) {
    ++at;
    const size_t equals = field.find_first_of("=;", at);
    if (equals == std::string_view::npos) return "";
    if (field[equals] == ';') {
      at = equals;
      continue;
    }
    const bool wanted = SameWord(Trim(field.substr(at, equals - at)), name);
    at = equals + 1;
    while (at < field.size() && (field[at] == ' ' || field[at] == '\t')) ++at;
    std::string value;
    if (at < field.size() && field[at] == '"') {
      for (++at; at < field.size() && field[at] != '"'; ++at) {
        if (field[at] == '\\' && at + 1 < field.size()) ++at;
        value += field[at];
      }
      if (at >= field.size()) return "";  // it never ends
      at = field.find(';', at);
    } else {
      const size_t end = std::min(field.find(';', at), field.size());
      value = Trim(field.substr(at, end - at));
      at = end < field.size() ? end : std::string_view::npos;
    }
    if (wanted) return value;
  }
  return "";
}

Result<MultipartReader> MultipartReader::Make(std::string_view content_type,
                                              std::string part, Sink sink) {
  const std::string_view type =
      Trim(content_type.substr(0, content_type.find(';')));
  const std::string boundary = HeaderParameter(content_type, "boundary");
  if (!SameWord(type, "multipart/form-data") || boundary.empty() ||
      boundary.size() > kMaxBoundary ||
      boundary.find_first_of("\r\n") != std::string::npos) {
    return base::InvalidArgumentError(
        "expected Content-Type: multipart/form-data with a boundary of 1 to " +
        std::to_string(kMaxBoundary) + " characters, found '" +
        base::Printable(content_type) + "'");
  }
  return MultipartReader(boundary, std::move(part), std::move(sink));
}

Status MultipartReader::OnHead(std::string_view head) {
  if (++parts_ > kMaxParts) {
    return Odd("it has more than " + std::to_string(kMaxParts) + " parts");
  }
  state_ = State::kOther;
  while (!head.empty()) {
    const size_t end = std::min(head.find("\r\n"), head.size());
    const std::string_view line = head.substr(0, end);
    head.remove_prefix(std::min(end + 2, head.size()));
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos ||
        !SameWord(Trim(line.substr(0, colon)), "content-disposition")) {
      continue;
    }
    if (HeaderParameter(line.substr(colon + 1), "name") != part_) continue;
    if (found_) return Odd("part '" + part_ + "' comes twice");
    found_ = true;
    state_ = State::kWanted;
  }
  return base::OkStatus();
}

Status MultipartReader::Give(std::string_view data) {
  if (state_ != State::kWanted || data.empty()) return base::OkStatus();
  return sink_(std::as_bytes(std::span(data.data(), data.size())));
}

Status MultipartReader::Add(std::span<const std::byte> bytes) {
  std::string_view data(reinterpret_cast<const char*>(bytes.data()),
                        bytes.size());
  while (!data.empty() || !pending_.empty()) {
    switch (state_) {
      case State::kPreamble:
      case State::kWanted:
      case State::kOther: {
        // What is left of before is shorter than a delimiter: data follows it
        // unless the delimiter stands across.
        if (!pending_.empty()) {
          const size_t more = std::min(data.size(), 2 * delimiter_.size());
          std::string joined = pending_ + std::string(data.substr(0, more));
          const size_t at = joined.find(delimiter_);
          if (at != std::string::npos && at < pending_.size()) {
            BIM_RETURN_IF_ERROR(Give(std::string_view(joined).substr(0, at)));
            data.remove_prefix(at + delimiter_.size() - pending_.size());
            pending_.clear();
            state_ = State::kMark;
            break;
          }
          if (data.size() < delimiter_.size()) {
            // Still not enough to tell of all that is left.
            const size_t keep = std::min(joined.size(), delimiter_.size() - 1);
            BIM_RETURN_IF_ERROR(
                Give(std::string_view(joined).substr(0, joined.size() - keep)));
            pending_ = joined.substr(joined.size() - keep);
            return base::OkStatus();
          }
          BIM_RETURN_IF_ERROR(Give(pending_));
          pending_.clear();
        }
        const size_t at = data.find(delimiter_);
        if (at != std::string_view::npos) {
          BIM_RETURN_IF_ERROR(Give(data.substr(0, at)));
          data.remove_prefix(at + delimiter_.size());
          state_ = State::kMark;
          break;
        }
        const size_t keep = std::min(data.size(), delimiter_.size() - 1);
        BIM_RETURN_IF_ERROR(Give(data.substr(0, data.size() - keep)));
        pending_ = data.substr(data.size() - keep);
        return base::OkStatus();
      }
      case State::kMark: {
        const size_t take = std::min(data.size(), kMaxPadding);
        const size_t before = pending_.size();
        pending_ += data.substr(0, take);
        if (pending_.starts_with("--")) {
          pending_.clear();
          state_ = State::kEnd;
          return base::OkStatus();
        }
        const size_t end = pending_.find("\r\n");
        if (end == std::string::npos) {
          if (pending_.size() >= kMaxPadding) {
            return Odd("a line of a boundary is too long");
          }
          return base::OkStatus();
        }
        if (!Trim(std::string_view(pending_).substr(0, end)).empty()) {
          return Odd("a boundary is followed by other text");
        }
        data.remove_prefix(end + 2 - before);
        // A head without lines ends at once.
        pending_ = "\r\n";
        state_ = State::kHead;
        break;
      }
      case State::kHead: {
        const size_t before = pending_.size();
        pending_ += data.substr(0, std::min(data.size(), kMaxHead));
        const size_t end = pending_.find("\r\n\r\n");
        if (end == std::string::npos) {
          if (pending_.size() > kMaxHead) {
            return Odd("the head of a part has more than " +
                       std::to_string(kMaxHead) + " bytes");
          }
          return base::OkStatus();
        }
        data.remove_prefix(end + 4 - before);
        const std::string head =
            end > 2 ? pending_.substr(2, end - 2) : std::string();
        pending_.clear();
        BIM_RETURN_IF_ERROR(OnHead(head));
        break;
      }
      case State::kEnd:
        return base::OkStatus();  // the epilogue says nothing
    }
  }
  return base::OkStatus();
}

Status MultipartReader::End() const {
  if (state_ != State::kEnd) {
    return base::InvalidArgumentError(
        "the body ended before the last boundary of its multipart/form-data");
  }
  if (!found_) {
    return base::InvalidArgumentError("the body has no part '" + part_ + "'");
  }
  return base::OkStatus();
}

}  // namespace bim::longhorn
