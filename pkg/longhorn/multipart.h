// Takes one part out of a multipart/form-data body (RFC 7578, RFC 2046 5.1.1)
// as it streams by: the data of an upload comes in the part "chunk".
//
// Bounded: a part's head has at most 8 KiB, a boundary 70 characters, at most
// 64 parts. No allocation grows with the body. One call at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "pkg/base/status.h"

namespace bim::longhorn {

class MultipartReader {
 public:
  // Called with the data of the wanted part, in order, in pieces of any length.
  using Sink = std::function<base::Status(std::span<const std::byte>)>;

  // `content_type`: the header's value. INVALID_ARGUMENT: it is no
  // multipart/form-data with a boundary.
  static base::Result<MultipartReader> Make(std::string_view content_type,
                                            std::string part, Sink sink);

  // The next bytes of the body. INVALID_ARGUMENT: it is no such body, or the
  // part comes a second time; otherwise what the sink said.
  base::Status Add(std::span<const std::byte> data);
  // The body ended. INVALID_ARGUMENT: in the middle, or without the part.
  base::Status End() const;

 private:
  enum class State {
    kPreamble,  // before the first boundary
    kMark,      // behind a boundary: "--" or the end of its line
    kHead,      // lines of a part's head
    kWanted,    // data of the part
    kOther,     // data of another part
    kEnd        // behind the last boundary
  };
  MultipartReader(std::string boundary, std::string part, Sink sink)
      : delimiter_("\r\n--" + std::move(boundary)),
        part_(std::move(part)),
        sink_(std::move(sink)),
        pending_("\r\n") {}  // so that a boundary may open the body
  base::Status OnHead(std::string_view head);
  base::Status Give(std::string_view data);

  std::string delimiter_;
  std::string part_;
  Sink sink_;
  State state_ = State::kPreamble;
  std::string pending_;  // not understood yet
  size_t parts_ = 0;
  bool found_ = false;
};

// The value of a parameter of a header field such as Content-Disposition, a
// token or a quoted string; empty when there is none. `field` with the value
// that stands before the parameters.
std::string HeaderParameter(std::string_view field, std::string_view name);

}  // namespace bim::longhorn
